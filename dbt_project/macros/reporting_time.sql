{# Days and weeks as every model means them. #}

{#
    A constant of the whole project: the engine takes no time zone from a column, and days built in
    another one are other days, so a change wants a full refresh.
#}
{% macro reporting_timezone() -%}
    {{ var('reporting_timezone', env_var('DBT_REPORTING_TIMEZONE', 'UTC')) }}
{%- endmacro %}

{% macro reporting_day(occurred_at) -%}
    toDate({{ occurred_at }}, '{{ reporting_timezone() }}')
{%- endmacro %}

{% macro reporting_today() -%}
    toDate(now(), '{{ reporting_timezone() }}')
{%- endmacro %}

{# The Monday of an ISO week; toStartOfWeek alone would start on Sunday. #}
{% macro iso_week(day) -%}
    toStartOfWeek({{ day }}, 1)
{%- endmacro %}

{# What the reference questions are asked about, as whole days: the last 30 and what there is of today. #}
{% macro in_reference_window(day) -%}
    {{ day }} >= {{ reporting_today() }} - 30
{%- endmacro %}

{# Whether a period is over, given the first day after it. #}
{% macro is_over(first_day_after) -%}
    toBool({{ first_day_after }} <= {{ reporting_today() }})
{%- endmacro %}
