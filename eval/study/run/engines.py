"""Carrying out a study: one job after another, by several processes, or as tasks of a Ray cluster."""

import logging
import math
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from envs.errors import InputError, cause
from eval.study.plan.cells import CellFolder
from eval.study.results.writer import StudyFile
from eval.study.run.jobs import Job, Outcome, Study
from eval.study.run.stages import STAGES, execute

CRASHED = "the worker died; see the cell's log.txt, and the system's for lack of memory"
_MOST_SHARING = 4  # jobs on one GPU
_MOST_HANDED_OVER = 500  # jobs in Ray's hands: waiting for one of them costs time and memory for all


class Engine(ABC):
    """Carries out jobs that do not depend on each other, at most ``most`` of them at once.

    ``retries``: further attempts at a job that failed for a reason that is not the user's, or whose worker died.
    """

    most = 1

    def __init__(self, retries: int = 1) -> None:
        self.retries = retries

    @abstractmethod
    def begin(self, job: Job) -> Any:
        """Begin a job; return what stands for it until it ends."""

    @abstractmethod
    def ended(self, running: Sequence[Any]) -> list[tuple[Any, Outcome]]:
        """Wait until some of the ``running`` jobs have ended; return what stands for them, with the outcomes."""

    def interrupt(self, running: Sequence[Any]) -> None:  # noqa: B027  (no other process, nothing to tell)
        """Stop the ``running`` jobs after a KeyboardInterrupt; what is done is kept."""

    def close(self) -> None:  # noqa: B027  (most engines hold nothing)
        """Let go of whatever the engine holds."""

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Yield every job with its outcome as it ends, in any order."""
        queue = list(reversed(jobs))
        running: dict[Any, Job] = {}
        try:
            while queue or running:
                while queue and len(running) < self.most:
                    job = queue.pop()
                    running[self.begin(job)] = job
                for begun, outcome in self.ended(list(running)):
                    yield running.pop(begun), outcome
        except KeyboardInterrupt:
            self.interrupt(list(running))
            raise

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome, bool]]:
        """Carry out all jobs; yield each as it ends, with whether it is tried again, as failures are while they may."""
        waiting = list(jobs)
        for attempt in range(self.retries + 1):
            again = []
            for job, outcome in self.outcomes(waiting):
                retried = outcome.error is not None and outcome.retry and attempt < self.retries
                again += [job] * retried
                yield job, outcome, retried
            waiting = again


class InProcess(Engine):
    """One job after another, in this process."""

    def begin(self, job: Job) -> Any:
        """Return the job itself."""
        return job

    def ended(self, running: Sequence[Any]) -> list[tuple[Any, Outcome]]:
        """Do the job."""
        return [(job, execute(job)) for job in running]


class Pool(Engine):
    """As many processes as ``workers`` on this machine; its GPUs are dealt to them in turn.

    A worker that dies ends the jobs that the pool had begun, and no others.
    """

    def __init__(self, workers: int, retries: int = 1) -> None:
        super().__init__(retries)
        if workers < 1:
            raise InputError(f"--workers is {workers}; expected at least 1")
        self.most = workers
        self.executor: ProcessPoolExecutor | None = None

    def begin(self, job: Job) -> Any:
        """Give the job to a worker, having started them where there are none."""
        if self.executor is None:
            context = multiprocessing.get_context("spawn")  # a fork would inherit CUDA and threads
            arguments = (max(1, (os.cpu_count() or 1) // self.most), context.Value("i", 0))
            self.executor = ProcessPoolExecutor(self.most, context, prepare_worker, arguments)
        return self.executor.submit(execute, job)

    def ended(self, running: Sequence[Future]) -> list[tuple[Any, Outcome]]:
        """Wait for the first that ends; for all where a worker died, for the pool ends with it."""
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        if any(_died(future) for future in done):
            done, _ = wait(running)
            self.close()
        crashed = Outcome(CRASHED, retry=True)
        return [(future, crashed if _died(future) else future.result()) for future in done]

    def interrupt(self, running: Sequence[Any]) -> None:
        """End the workers, which were interrupted, too, and save."""
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.executor = None


def _died(future: Future) -> bool:
    """Return whether the worker of an ended job died."""
    return isinstance(future.exception(), BrokenProcessPool)


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
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            self.close()  # Ray would wait forever
            wanted = f"{cpus:g} cores and {gpus:g} GPUs"
            raise InputError(f"no node of the cluster has {wanted}; lower --cpus or --gpus")
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

    def begin(self, job: Job) -> Any:
        """Hand the job to Ray."""
        return self.task.remote(job)

    def ended(self, running: Sequence[Any]) -> list[tuple[Any, Outcome]]:
        """Wait for the first that ends."""
        (reference,), _ = self.ray.wait(running, num_returns=1)
        try:
            outcome = self.ray.get(reference)
        except self.ray.exceptions.WorkerCrashedError:
            outcome = Outcome(CRASHED)  # Ray has tried again already
        except self.ray.exceptions.RayError as error:
            outcome = Outcome(f"Ray: {str(error).splitlines()[0]}", retry=True)
        return [(reference, outcome)]

    def interrupt(self, running: Sequence[Any]) -> None:
        """Cancel the tasks, as Ctrl-C in the worker: what is done is kept."""
        for reference in running:
            self.ray.cancel(reference)

    def close(self) -> None:
        """Stop the cluster that was started for the study, or leave the one that was joined."""
        if self.owns:
            self.ray.shutdown()


def even_share(gpus: float, jobs: float) -> float:
    """Return the part of a GPU for each of ``jobs`` that share ``gpus`` evenly: 1, 1/2, 1/3 or 1/4; 0 of none."""
    return 1 / min(max(math.ceil(jobs / gpus), 1), _MOST_SHARING) if gpus else 0.0


def _execute(job: Job) -> Outcome:
    return execute(job)


def carry_out(study: Study, engine: Engine, tell: Callable[[str], None]) -> dict[str, int]:
    """Do everything that is left of a study; return the number of cells per status.

    A cell that fails in one stage is left out of the next ones, and the others go on. A KeyboardInterrupt stops the
    study; what was done is kept.
    """
    alive = list(study.cells)
    for cell in alive:  # forget earlier failures: such cells are tried again
        folder = CellFolder.open(study.directory, cell.hash)
        if folder.error is not None:
            folder.error = None
            folder.write(cell)
    file = StudyFile(study)
    for stage in STAGES:
        jobs, done, failed = study.jobs(stage, alive), 0, set()
        for job, outcome, again in engine.run(jobs):
            done += not again
            head = f"[{stage} {done}/{len(jobs)}] {job.label}"
            if outcome.error is not None:
                tell(f"{head}: {outcome.error}{'; once more' if again else ''}")
            elif outcome.seconds > 0.5:  # what was done before takes no time and no line
                tell(f"{head}: {outcome.seconds:.1f} s")
            if outcome.error is not None and not again:
                failed.add(job.cell)
                folder = CellFolder.open(study.directory, job.cell.hash)
                folder.path.mkdir(parents=True, exist_ok=True)
                folder.error = outcome.error
                folder.write(job.cell)
            file.update(job.cell)
        alive = [cell for cell in alive if cell not in failed]
    return file.write()
