"""Engines: how the jobs of a study are carried out, one after another or by several processes."""

import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from envs.errors import InputError
from eval.study.run.jobs import Job, Outcome
from eval.study.run.stages import execute

# Told about every job that ended: the job, how it ended, and whether it will be tried again.
Listener = Callable[[Job, Outcome, bool], None]

CRASHED = "the worker died; see the cell's log.txt, and the system's for lack of memory"


class Engine(ABC):
    """Carries out jobs that do not depend on each other.

    Args:
        retries: further attempts at a job that failed for a reason that is not the user's, or whose worker died.
    """

    def __init__(self, retries: int = 1) -> None:
        self.retries = retries

    @abstractmethod
    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Yield every job with its outcome as it ends, in any order."""

    def run(self, jobs: Sequence[Job], tell: Listener) -> dict[Job, Outcome]:
        """Carry out all jobs, failures again while attempts are left; return how each ended at last.

        Raises:
            KeyboardInterrupt: as from the terminal; what was done is kept.
        """
        ended: dict[Job, Outcome] = {}
        waiting = list(jobs)
        for attempt in range(self.retries + 1):
            again = []
            for job, outcome in self.outcomes(waiting):
                ended[job] = outcome
                retried = outcome.error is not None and outcome.retry and attempt < self.retries
                tell(job, outcome, retried)
                if retried:
                    again.append(job)
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
    """Several processes on this machine; its GPUs are dealt to them in turn.

    Args:
        workers: how many.
        retries: as `Engine`.
    """

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
    """Set up a process of the pool: its CPU threads, and as "cuda" the GPU that is its turn.

    Args:
        threads: of PyTorch.
        counter: a shared integer; how many workers were set up before.
    """
    torch.set_num_threads(threads)
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
