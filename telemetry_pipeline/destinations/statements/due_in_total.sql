-- Distinct events that should be at the destination once everything due has been sent: what was
-- accepted, and what is neither settled nor withheld. It does not look at ops.export_marks, so that
-- it also shows an event that a mark would hide.
SELECT
    (
        SELECT uniqExact(event_id)
        FROM ops.export_outbox FINAL
        WHERE destination = {destination:String} AND state = 'accepted'
    )
    +
    (
        SELECT uniqExact(event_id)
        FROM raw.product_telemetry_events
        WHERE match(name, {names:String})
            AND batch_id IN (SELECT batch_id FROM ops.slice_results)
            AND event_id NOT IN
            (
                SELECT event_id
                FROM ops.export_outbox FINAL
                WHERE destination = {destination:String} AND state IN ('accepted', 'refused')
            )
            AND ifNull(anonymous_user_id, 0) NOT IN
            (
                SELECT subject FROM privacy.consent_withdrawals WHERE subject_kind = 'user'
                UNION ALL
                SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'user'
            )
            AND ifNull(session_id, 0) NOT IN
            (
                SELECT subject FROM privacy.consent_withdrawals WHERE subject_kind = 'session'
                UNION ALL
                SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'session'
            )
            AND ifNull(org_id_hash, 0) NOT IN
                (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'organisation')
    ) AS events
