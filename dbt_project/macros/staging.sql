{# What every staging model has in common: the columns each event carries, and typed reads of its payload. #}

{% macro event_columns() -%}
    org_id_hash,
    event_id,
    schema_version,
    session_id,
    anonymous_user_id,
    route_pattern,
    occurred_at,
    ingested_at,
    source
{%- endmacro %}

{# Required keys are plain types; a key that may be absent is read as Nullable(...). #}
{% macro payload(key, type) -%}
    JSONExtract(payload_json, '{{ key }}', '{{ type }}')
{%- endmacro %}
