{# Text that must be there is there: an absent payload key reads as ''. #}
{% test not_blank(model, columns) %}

select {{ columns | join(', ') }}
from {{ model }}
where {% for column in columns %}{{ column }} = ''{{ ' or ' if not loop.last }}{% endfor %}

{% endtest %}
