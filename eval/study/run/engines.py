"""Engines carry out the jobs of a study: one after another, by several processes, or as tasks of a Ray cluster."""

import logging
import math
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from envs.errors import InputError, cause
from eval.study.run.jobs import Job, Outcome
from eval.study.run.stages import execute

# Told about every job that ended: the job, how it ended, and whether it will be tried again.
Listener = Callable[[Job, Outcome, bool], None]

CRASHED = "the worker died; see the cell's log.txt, and the system's for lack of memory"
_MOST_SHARING = 4  # jobs on one GPU
_MOST_HANDED_OVER = 500  # jobs in Ray's hands: waiting for one of them costs time and memory for all


class Engine(ABC):
    """Carries out jobs that do not depend on each other.

    ``retries``: further attempts at a job that failed for a reason that is not the user's, or whose worker died.
    """

    def __init__(self, retries: int = 1) -> None:
        self.retries = retries

    @abstractmethod
    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Yield every job with its outcome as it ends, in any order."""

    def run(self, jobs: Sequence[Job], tell: Listener) -> dict[Job, Outcome]:
        """Carry out all jobs, failures again while attempts are left; return how each ended at last.

        A KeyboardInterrupt, as from the terminal, ends it; what was done is kept.
        """
        ended: dict[Job, Outcome] = {}
        waiting = list(jobs)
        for attempt in range(self.retries + 1):
            again = []
            for job, outcome in self.outcomes(waiting):
                ended[job] = outcome
                retried = outcome.error is not None and outcome.retry and attempt < self.retries
                tell(job, outcome, retried)
                again += [job] * retried
            waiting = again
            if not waiting:
                break
        return ended

    def close(self) -> None:  # noqa: B027  (most engines hold nothing)
        """Let go of whatever the engine holds."""


class InProcess(Engine):
    """One job after another, in this process."""

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Yield each job as it ends."""
        for job in jobs:
            yield job, execute(job)


class Pool(Engine):
    """As many processes as ``workers`` on this machine; its GPUs are dealt to them in turn."""

    def __init__(self, workers: int, retries: int = 1) -> None:
        super().__init__(retries)
        if workers < 1:
            raise InputError(f"--workers is {workers}; expected at least 1")
        self.workers = workers
        self.executor: ProcessPoolExecutor | None = None

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Yield each job as it ends; a worker that dies ends those that the pool had begun, and no others."""
        waiting = list(jobs)
        while waiting:
            waiting = yield from self._until_broken(waiting)

    def _until_broken(self, jobs: list[Job]) -> Generator[tuple[Job, Outcome], None, list[Job]]:
        """Work until all is done or a worker dies; return the jobs that had not been begun."""
        executor = self._start()
        queue = list(reversed(jobs))
        running: dict[Future, Job] = {}
        try:
            while queue or running:
                while queue and len(running) < self.workers:
                    job = queue.pop()
                    running[executor.submit(execute, job)] = job
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                outcomes = {future: _outcome(future) for future in done}
                broken = None in outcomes.values()
                if broken:  # the pool ends with one worker
                    outcomes = {future: _outcome(future) for future in running}
                    self.close()
                for future, outcome in outcomes.items():
                    yield running.pop(future), outcome or Outcome(CRASHED, retry=True)
                if broken:
                    return list(reversed(queue))
        except KeyboardInterrupt:
            self.close()  # the workers were interrupted, too, and save
            raise
        return []

    def _start(self) -> ProcessPoolExecutor:
        if self.executor is None:
            context = multiprocessing.get_context("spawn")  # a fork would inherit CUDA and threads
            arguments = (max(1, (os.cpu_count() or 1) // self.workers), context.Value("i", 0))
            self.executor = ProcessPoolExecutor(self.workers, context, prepare_worker, arguments)
        return self.executor

    def close(self) -> None:
        """End the workers."""
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.executor = None


def _outcome(future: Future) -> Outcome | None:
    """Return the outcome of an ended job, None where its worker died."""
    try:
        return future.result()
    except BrokenProcessPool:
        return None


def prepare_worker(threads: int, counter: Any) -> None:
    """Set up a process of the pool: its PyTorch threads, and as "cuda" the GPU that is its turn.

    ``counter``: a shared integer; how many workers were set up before.
    """
    torch.set_num_threads(threads)
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


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
            given = f"--workers is {workers}, --cpus {cpus:g} and --gpus {gpus}"
            raise InputError(f"{given}; expected at least 1, above 0, 0 or more")
        try:
            import ray
        except ImportError:
            install = 'install it with: pip install -e ".[ray]", or use --engine pool'
            raise InputError(f"Ray is not installed; {install}") from None
        self.ray: Any = ray
        self.owns = not self.ray.is_initialized()
        if self.owns:
            self._connect(workers, address)
        there = self.ray.cluster_resources()
        at_once = there.get("CPU", 0) / cpus
        if gpus is None:
            gpus = even_share(there.get("GPU", 0), at_once)
        self._check_resources(cpus, gpus)
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
            raise InputError(f"cannot {where}: {cause(error)}; start one with: ray start --head") from None

    def _check_resources(self, cpus: float, gpus: float) -> None:
        """Refuse jobs for which Ray would wait forever."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            self.close()
            wanted = f"{cpus:g} cores and {gpus:g} GPUs"
            raise InputError(f"no node of the cluster has {wanted}; lower --cpus or --gpus")

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
