"""Bounds the history of runs: one takes 288 KB of SQLite, and one starts every few seconds."""

from __future__ import annotations

import dagster as dg

#: Successful runs of one job that are kept; failed ones stay until somebody deletes them.
KEPT_RUNS = 200
#: Deletions in one go, so that catching up never holds a run back for long.
MOST_AT_ONCE = 20


def prune_runs(instance: dg.DagsterInstance, job_name: str, *, keep: int = KEPT_RUNS) -> int:
    """Delete the oldest successful runs of a job beyond `keep`; returns how many.

    The latest materialisation and check of every asset are of newer runs, so nothing that the UI
    shows as current goes.
    """
    finished = dg.RunsFilter(job_name=job_name, statuses=[dg.DagsterRunStatus.SUCCESS])
    surplus = min(MOST_AT_ONCE, instance.get_runs_count(finished) - keep)
    if surplus <= 0:
        return 0
    oldest = instance.get_run_records(finished, limit=surplus, ascending=True)
    for record in oldest:
        instance.delete_run(record.dagster_run.run_id)
    return len(oldest)
