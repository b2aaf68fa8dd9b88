{#
    Every mart has a row set per organisation and one over all of them. A scope key is the
    organisation's hash, or 0 for all (0 never is a hash: raw keeps it for "absent"). A key that is
    not NULL can be joined on. `array join scope_keys()` gives each row to both of its row sets, so
    that distinct counts are counted in each, never summed.
#}

{% macro scope_keys(org_id_hash="org_id_hash") -%}
    if(isNull({{ org_id_hash }}), [toUInt64(0)], [toUInt64(0), assumeNotNull({{ org_id_hash }})])
{%- endmacro %}

{% macro scope_columns(scope_key="scope_key") -%}
    toLowCardinality(if({{ scope_key }} = 0, 'all', 'organisation')) as scope,
    nullIf({{ scope_key }}, 0) as org_id_hash
{%- endmacro %}
