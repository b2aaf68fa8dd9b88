-- A fingerprint that changes with every withdrawal and tombstone, and the erasure epoch.
SELECT
    (SELECT (count(), sum(cityHash64(subject_kind, subject, withdrawn_at))) FROM privacy.consent_withdrawals)
        AS withdrawals,
    (SELECT (count(), sum(cityHash64(subject_kind, subject, requested_at))) FROM privacy.erasure_tombstones)
        AS tombstones,
    (SELECT max(epoch) FROM privacy.epochs WHERE kind = 'erasure') AS erasure_epoch
