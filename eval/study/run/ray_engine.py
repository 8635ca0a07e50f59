"""The Ray engine: jobs as tasks of a cluster, on this machine or many, with fractional GPUs and retries."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from envs.errors import InputError
from eval.study.run.engines import CRASHED, Engine
from eval.study.run.jobs import Job, Outcome
from eval.study.run.stages import execute

_MOST_SHARING = 4  # jobs on one GPU
_MOST_HANDED_OVER = 500  # jobs in Ray's hands: waiting for one of them costs time and memory for all


class RayEngine(Engine):
    """Jobs as Ray tasks. All nodes must see the study's directory, and the data sets, under the same paths.

    A task whose worker dies is begun again by Ray, on another worker, up to ``retries`` times; it goes on from what
    the directory holds.

    Args:
        workers: cores of the local cluster that is started where there is no ``address``.
        address: of a cluster: ``auto``, or ``ray://HOST:10001``.
        cpus: cores that a job holds.
        gpus: GPUs that a job holds; 0.25 lets four jobs share one. None deals those of the cluster evenly to the jobs
            that its cores allow at once, at most four to one; 0 hides them.
        retries: as `Engine`.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or it can never run a job.
    """

    def __init__(
        self,
        workers: int,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float | None = None,
        retries: int = 1,
    ) -> None:
        super().__init__(retries)
        if workers < 1 or cpus <= 0 or (gpus is not None and gpus < 0):
            raise InputError(
                f"--workers is {workers}, --cpus {cpus:g} and --gpus {gpus}; expected at least 1, above 0, 0 or more"
            )
        try:
            import ray
        except ImportError:
            raise InputError(
                'Ray is not installed; install it with: pip install -e ".[ray]", or use --engine pool'
            ) from None
        self.ray: Any = ray
        self.owns = not self.ray.is_initialized()
        if self.owns:
            self._connect(workers, address)
        if gpus is None:
            there = self.ray.cluster_resources()
            gpus = even_share(there.get("GPU", 0), there.get("CPU", 0) / cpus)
        self._check_resources(cpus, gpus)
        at_once = self.ray.cluster_resources().get("CPU", 0) / cpus
        self.most = max(_MOST_HANDED_OVER, 2 * math.ceil(at_once))
        remote = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries, retry_exceptions=False)
        self.task = remote(_execute)

    def _connect(self, workers: int, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {"num_cpus": workers, "include_dashboard": False}
        where_to: dict[str, Any] = local if address is None else {"address": address}
        try:
            self.ray.init(logging_level=logging.ERROR, log_to_driver=False, **where_to)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = "start a local Ray cluster" if address is None else f"reach a Ray cluster at {address}"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"cannot {where}: {reason}; start one with: ray start --head") from None

    def _check_resources(self, cpus: float, gpus: float) -> None:
        """Refuse jobs for which Ray would wait forever."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            self.close()
            raise InputError(
                f"no node of the cluster has {cpus:g} cores and {gpus:g} GPUs; lower --cpus or --gpus"
            )

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Yield each job as it ends."""
        queue = list(reversed(jobs))
        running: dict[Any, Job] = {}
        try:
            while queue or running:
                while queue and len(running) < self.most:
                    job = queue.pop()
                    running[self.task.remote(job)] = job
                done, _ = self.ray.wait(list(running), num_returns=1)
                for reference in done:
                    yield running.pop(reference), self._outcome(reference)
        except KeyboardInterrupt:
            for reference in running:
                self.ray.cancel(reference)  # as Ctrl-C in the worker: what is done is kept
            raise

    def _outcome(self, reference: Any) -> Outcome:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.WorkerCrashedError:
            return Outcome(CRASHED)  # Ray has tried again already
        except self.ray.exceptions.RayError as error:
            return Outcome(f"Ray: {str(error).splitlines()[0]}", retry=True)

    def close(self) -> None:
        """Stop the cluster that was started for the study, or leave the one that was joined."""
        if self.owns:
            self.ray.shutdown()


def even_share(gpus: float, jobs: float) -> float:
    """Return the part of a GPU for each of ``jobs`` that share ``gpus`` evenly: 1, 1/2, 1/3 or 1/4; 0 of none."""
    return 1 / min(max(math.ceil(jobs / gpus), 1), _MOST_SHARING) if gpus else 0.0


def _execute(job: Job) -> Outcome:
    return execute(job)
