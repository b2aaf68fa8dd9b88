-- The hash of a slice's bytes is XXH3 now (sources/base.py); a claim of before, still open, counts as
-- changed and is given up with a loss, so let open slices end before this is applied.
ALTER TABLE ops.slice_intents RENAME COLUMN IF EXISTS bytes_sha256 TO bytes_hash;
