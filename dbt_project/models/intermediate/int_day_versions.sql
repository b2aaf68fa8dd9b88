-- One row per reporting day that events ever reached: the day's version when this build began.
-- Built before anything reads events, so that what arrives during a build shows as a difference.
with

touches as (
    select * from {{ source('ops', 'touches') }}
)

select
    day,
    {{ day_version() }}
from touches
group by day
