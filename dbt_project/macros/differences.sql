{# Rows that only one of two CTEs with the same columns has, each with the side it is on. #}
{% macro differences(expected, actual) -%}
    select 'only in {{ expected }}' as side, * from (select * from {{ expected }} except select * from {{ actual }})
    union all
    select 'only in {{ actual }}' as side, * from (select * from {{ actual }} except select * from {{ expected }})
{%- endmacro %}
