-- One row per slice of a source and attempt at it that came to an end.
with

slice_results as (
    select * from {{ source('ops', 'slice_results') }}
)

select
    source,
    "partition" as source_partition,  -- a word the SQL linter keeps for itself
    epoch,
    start_offset,
    end_offset,
    attempt,
    received,
    accepted,
    duplicates,
    arraySum(mapValues(rejected)) as rejected,
    arraySum(mapValues(dropped)) as dropped,
    finished_at
from slice_results
