"""Changes to a model that several attacks may need at once: the first makes them, the last one undoes them."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

Undo = Callable[[], None]
Change = Callable[[], Undo]

_LOCK = threading.RLock()
_HELD: dict[Hashable, tuple[int, Undo]] = {}  # by key: how many blocks hold the change, and how to undo it


@contextmanager
def held(changes: Iterable[tuple[Hashable, Change]]) -> Iterator[None]:
    """Keep ``changes``, pairs of a key and a function that changes something and returns how to undo it.

    A change that another block, also of another thread, holds under the same key is not made again, and stays until the
    last such block ends.
    """
    with ExitStack() as releases:
        with _LOCK:
            for key, change in changes:
                count, undo = _HELD[key] if key in _HELD else (0, change())
                _HELD[key] = count + 1, undo
                releases.callback(_release, key)
        yield


def is_held(key: Hashable) -> bool:
    """Whether some block holds the change of this ``key``."""
    return key in _HELD


def _release(key: Hashable) -> None:
    with _LOCK:
        count, undo = _HELD.pop(key)
        if count > 1:
            _HELD[key] = count - 1, undo
        else:
            undo()
