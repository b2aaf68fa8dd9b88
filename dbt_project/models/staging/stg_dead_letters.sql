-- One row per record that ingest refused, without its encrypted content.
with

dead_letters as (
    select * from {{ source('raw', 'dead_letters') }}
)

select
    batch_id,
    attempt,
    source_name,
    source_partition,
    source_position,
    reason,
    field,
    event_name,
    ingested_at
from dead_letters
