-- What people asked for, by pseudonym, and the epochs that ingest records with every slice.

CREATE TABLE IF NOT EXISTS privacy.consent_withdrawals
(
    subject_kind Enum8('user' = 1, 'session' = 2, 'device' = 3),
    subject UInt64,
    withdrawn_at DateTime64(3, 'UTC'),
    requested_by String
)
ENGINE = ReplacingMergeTree(withdrawn_at)
ORDER BY (subject_kind, subject);

-- An erased person's later events and replays are dropped; the tombstone is what says so.
CREATE TABLE IF NOT EXISTS privacy.erasure_tombstones
(
    subject_kind Enum8('user' = 1, 'organisation' = 2, 'session' = 3, 'device' = 4),
    subject UInt64,
    erasure_epoch UInt64,
    requested_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(requested_at)
ORDER BY (subject_kind, subject);

-- Raised by an erasure, a withdrawal or a link of edge keys; the current epoch is the highest.
CREATE TABLE IF NOT EXISTS privacy.epoch_changes
(
    kind Enum8('erasure' = 1, 'consent' = 2, 'edge_link' = 3),
    epoch UInt64,
    changed_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (kind, epoch);

INSERT INTO privacy.epoch_changes (kind, epoch, changed_at)
VALUES ('erasure', 0, now64(6)), ('consent', 0, now64(6)), ('edge_link', 0, now64(6));

CREATE VIEW IF NOT EXISTS privacy.epochs AS
SELECT kind, max(epoch) AS epoch FROM privacy.epoch_changes GROUP BY kind;
