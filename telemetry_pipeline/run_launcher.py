"""Dagster's default run launcher, able to tell that a run's worker is gone.

The stock one cannot be asked, so a run whose code server was killed stays "started" for ever, and
the sensor waits for it for ever. With an answer, Dagster's run monitoring marks it as failed, the
sensor starts the next one, and the ledger takes over the slices it left.
"""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster_shared.serdes import deserialize_value

ANSWER_SECONDS = 5


class WatchedRunLauncher(DefaultRunLauncher):
    """Named in dagster.yaml. Asks the code server that started a run whether it still runs it."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """RUNNING while the code server holds the run's process, else FAILED."""
        server = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if server is None:
            return CheckRunHealthResult(WorkerStatus.FAILED, "its code server is not known")
        try:
            answer = deserialize_value(
                server.can_cancel_execution(
                    CanCancelExecutionRequest(run_id=run.run_id), timeout=ANSWER_SECONDS
                ),
                CanCancelExecutionResult,
            )
        except DagsterUserCodeUnreachableError:
            return CheckRunHealthResult(WorkerStatus.FAILED, "its code server is gone")
        if answer.can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process is gone")
