-- What was read from a slice is accepted, a duplicate, rejected or dropped, and nothing is both.
select
    source,
    source_partition,
    epoch,
    start_offset,
    attempt
from {{ ref('stg_slice_results') }}
where received != accepted + duplicates + rejected + dropped
