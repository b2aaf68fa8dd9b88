-- One row per slice of a source and attempt at it that came to an end.
with

slice_results as (
    select * from {{ source('ops', 'slice_results') }}
)

select
    source,
    slice_results.partition as source_partition,
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
