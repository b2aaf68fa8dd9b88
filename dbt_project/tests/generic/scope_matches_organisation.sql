{# A row is one organisation's or everybody's: the organisation is NULL exactly in the 'all' rows. #}
{% test scope_matches_organisation(model) %}

select scope, org_id_hash
from {{ model }}
where
    scope not in ('organisation', 'all')
    or (scope = 'all') != isNull(org_id_hash)

{% endtest %}
