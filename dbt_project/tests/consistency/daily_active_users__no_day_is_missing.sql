-- Each row set has every day from its first to its last, so that a chart shows a quiet day as zero.
select
    scope,
    org_id_hash,
    count() as days
from {{ ref('daily_active_users') }}
group by scope, org_id_hash
having days != 1 + dateDiff('day', min(day), max(day))
