"""Logs of training: TensorBoard events, and one JSON line per logged step."""

import contextlib
import json
import math
import numbers
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from envs.errors import InputError

_EVENTS = "events.out.tfevents.*"


class JSONLines(KVWriter):
    """Appends the scalars of every dump to the file ``path`` as one JSON object per line.

    ``keep``: bytes to keep of a file that is there already; what follows is cut off, and InputError raised where it is
    shorter.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        if keep and path.stat().st_size < keep:
            remedy = "restore it or train again"
            raise InputError(f"{path} has lost lines: expected {keep} bytes or more; {remedy}")
        self.file = open(path, "a+b")  # noqa: SIM115 - closed by close()
        self.file.truncate(keep)

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Append the line of ``step``."""
        # NumPy's numbers are real, too.
        real = [(key, value) for key, value in sorted(key_values.items()) if isinstance(value, numbers.Real)]
        scalars = {key: float(value) if math.isfinite(value) else None for key, value in real}
        self.file.write(json.dumps({"step": step, **scalars}).encode() + b"\n")
        self.file.flush()

    def size(self) -> int:
        """Return the bytes written so far, all of them on disk."""
        os.fsync(self.file.fileno())
        return self.file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoard(TensorBoardOutputFormat):
    """SB3's TensorBoard writer; when a run goes on, events after its checkpoint are marked as superseded.

    ``purge_step``: events from this step on, in files that are there already, are void.
    """

    def __init__(self, folder: Path, purge_step: int = 0) -> None:
        present = set(folder.glob(_EVENTS))
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=purge_step)
        self._is_closed = False
        written = set(folder.glob(_EVENTS)) - present
        # TensorBoard reads files in the order of their names, and the last supersedes. Names begin with the second,
        # host and process: a run that goes on within the second in which it was killed may come first by its
        # process's number. The next second then settles it, unless the clock went back.
        if present and max(written) <= max(present):
            self.writer.close()
            for path in written:
                path.unlink()
            time.sleep(1 - time.time() % 1)
            self.writer = SummaryWriter(log_dir=str(folder), purge_step=purge_step)


def make_logger(folder: Path, metrics: Path, keep: int = 0, purge_step: int = 0) -> Logger:
    """Return SB3's logger writing to TensorBoard in ``folder`` and to the ``metrics`` file."""
    lines = JSONLines(metrics, keep)  # first: it may refuse
    return Logger(str(folder), [TensorBoard(folder, purge_step), lines])


@contextlib.contextmanager
def quiet_writer_threads() -> Iterator[None]:
    """Keep TensorBoard's writing thread from printing the traceback of an error that the main thread reports anyway."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__module__ != event_file_writer.__name__:
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
