-- Lines of a slice that hold no record, one each in the data that follows, with their places in
-- the slice; a reason that is empty is found here.
INSERT INTO problems
WITH
    CAST({{positions}}, 'Array(UInt64)') AS positions,
    CAST({{reasons}}, 'Array(String)') AS reasons
SELECT
    positions[number + 1] AS position,
    multiIf(
        reasons[number + 1] != '', reasons[number + 1],
        NOT isValidJSON(line), 'undecodable',
        JSONType(line) != 'Object', 'undecodable',
        JSONHas(line, 'undecodable'), 'undecodable',
        'not_logs'
    ) AS reason,
    line
FROM (SELECT rowNumberInAllBlocks() AS number, line FROM input('line String'))
FORMAT LineAsString
