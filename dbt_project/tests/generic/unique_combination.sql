{# The grain: no two rows share these columns. NULLs compare as equal here, unlike in a join. #}
{% test unique_combination(model, columns) %}

select
    {{ columns | join(', ') }},
    count() as copies
from {{ model }}
group by {{ columns | join(', ') }}
having copies > 1

{% endtest %}
