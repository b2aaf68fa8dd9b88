{# Rows that only one of two CTEs with the same columns has, or has more often, each with its side. #}
{% macro differences(expected, actual) -%}
    select 'only in {{ expected }}' as side, * from (select * from {{ expected }} except all select * from {{ actual }})
    union all
    select 'only in {{ actual }}' as side, * from (select * from {{ actual }} except all select * from {{ expected }})
{%- endmacro %}
