{# In every row the columns do not decrease from left to right (first <= second <= ...). NULLs are left out. #}
{% test ordered(model, columns) %}

select {{ columns | join(', ') }}
from {{ model }}
where {% for column in columns[1:] %}{{ columns[loop.index0] }} > {{ column }}{{ ' or ' if not loop.last }}{% endfor %}

{% endtest %}
