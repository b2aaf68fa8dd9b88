-- received = accepted + duplicates + sum(rejected) + sum(dropped), slice by slice.
select
    source,
    partition,
    epoch,
    start_offset,
    attempt
from {{ source('ops', 'slice_results') }}
where received != accepted + duplicates + arraySum(mapValues(rejected)) + arraySum(mapValues(dropped))
