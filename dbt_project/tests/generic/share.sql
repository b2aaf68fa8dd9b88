{# A part of a whole lies between 0 and 1. NULL says the whole is empty. #}
{% test share(model, column_name) %}

select {{ column_name }}
from {{ model }}
where {{ column_name }} < 0 or {{ column_name }} > 1 or isNaN({{ column_name }})

{% endtest %}
