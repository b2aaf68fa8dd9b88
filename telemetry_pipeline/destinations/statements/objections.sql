-- Everybody who objected. An erasure also covers what a withdrawal covers, so it comes last.
SELECT 'consent' AS reason, toString(subject_kind) AS kind, subject FROM privacy.consent_withdrawals
UNION ALL
SELECT 'erasure' AS reason, toString(subject_kind) AS kind, subject FROM privacy.erasure_tombstones
