{#
    A day's version is the number of touches and the xor of their hashes: it changes with every
    touch, in whatever order they land.
#}
{% macro day_version() -%}
    count() as touches,
    groupBitXor(cityHash64(batch_id, attempt, toString(kind))) as version
{%- endmacro %}

{# Days that new events reached after the build began; a comparison with raw says nothing about them. #}
{% macro days_touched_since_build() -%}
    select day
    from (
        select day, touches, version from {{ ref('int_day_versions') }}
        union all
        select day, {{ day_version() }} from {{ source('ops', 'touches') }} group by day
    )
    group by day, touches, version
    having count() = 1
{%- endmacro %}
