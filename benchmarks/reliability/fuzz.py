"""Damaged and hostile inputs for loaders and command lines: ``python -m benchmarks.reliability.fuzz --inputs 100000``.

Valid files are changed at random: bytes flipped, cut, inserted, moved, numbers made extreme, values of JSON replaced by
others of any type; members of zips are put back with the right check sum, so that what reads them is reached. Every
input must be read, or refused by one clear line; anything else, a hang or a burst of memory is a failure, and so is a
message with control characters, which could rewrite a terminal. The same seed makes the same inputs.

``--atheris TARGET`` lets Google's Atheris, where it is installed, look for inputs by coverage instead.
"""

import argparse
import contextlib
import inspect
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agents.common.command_line import one_line
from attacks.core.errors import AttackError
from benchmarks.reliability.fuzz_targets import COMMANDS, FILES, Target
from benchmarks.reliability.page import record
from envs.errors import InputError

SECONDS = 30  # for one input; more is a hang
MEGABYTES = 700  # of growth in the memory of the process; more is a burst
SHARES = {"checkpoint, resumed": 0.04, "run summary, reported": 0.04, **dict.fromkeys(COMMANDS, 0.2)}
SHARES |= {
    name: 20.0 for name in FILES if name.startswith(("data", "npz"))
}  # milliseconds each, others many more
_NUMBERS = [
    b"\xff" * 4,
    b"\0" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80" + b"\0" * 7,
    b"\xff" * 8,
]
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "x", "../../etc/passwd", "os:system", "\x1b[31mred", "<script>alert(1)</script>", "a" * 5000, "\u202e",
    "\ud800", [], {}, [[]], [1, 2, 3], {"a": 1}, ["\n"], [[0.0] * 10] * 10,
]  # fmt: skip
_WORDS = [
    "", "-1", "0", "1", "2", "1e999", "nan", "inf", "9" * 400, "0.5", "8/255", "1/0", "é", "\x1b[2J", "a=b", "=", "a=",
    "steps=3", "--", "-", "..", "/dev/null", "/dev/zero", "nowhere", "Linf", "L2", "L1", "pgd", "fgsm", "autoattack",
    "supervised", "supervised:1", "ppo:x", "true", "none", "[1,2", "{}", "\n", "x" * 5000, "os:system", "json:loads",
    "folder:", "npz:/dev/null", "hflip", "translate:9", "\udcff", "cpu", "cuda:99", "<b>", "%s", "{0}", "--help",
]  # fmt: skip


def mutated(content: bytes, draws: random.Random) -> bytes:
    """Return the content after a few random changes."""
    if draws.random() < 0.02:
        return draws.randbytes(draws.randint(0, 400))
    if draws.random() < 0.6:
        with contextlib.suppress(ValueError, RecursionError):
            tree = json.loads(content)
            for _ in range(draws.randint(1, 3)):
                tree = _changed_tree(tree, draws)
            return json.dumps(tree).encode("utf-8", "surrogatepass")
    result = bytearray(content)
    for _ in range(draws.randint(1, 5)):
        _change_bytes(result, draws)
    return bytes(result)


def _changed_tree(value: Any, draws: random.Random) -> Any:
    """Return JSON with one value, key or entry changed."""
    if not isinstance(value, (dict, list)) or not value or draws.random() < 0.1:
        return draws.choice(_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, changed = draws.choice(keys), value.copy()
    chance = draws.random()
    if chance < 0.1:
        del changed[key]
    elif chance < 0.2 and isinstance(changed, dict):
        changed[str(draws.choice(_VALUES))] = changed.pop(key)
    elif chance < 0.2:
        changed += changed
    else:
        changed[key] = _changed_tree(value[key], draws)
    return changed


def _change_bytes(result: bytearray, draws: random.Random) -> None:
    reach = len(result) if draws.random() < 0.5 else min(len(result), 400)
    place, span = draws.randint(0, max(reach - 1, 0)), draws.randint(1, 40)
    match draws.randrange(7):
        case 0:
            result[place : place + 1] = draws.randbytes(1)
        case 1:
            number = draws.choice(_NUMBERS)
            result[place : place + len(number)] = number
        case 2:
            result[place:place] = draws.randbytes(draws.randint(1, 12))
        case 3:
            del result[place : place + span]
        case 4:
            result[place:place] = result[place : place + span] * draws.randint(1, 3)
        case 5:
            other = draws.randint(0, max(reach - 1, 0))
            result[place : place + span] = result[other : other + span]
        case 6:
            del result[place + span :]


def command_line(name: str, draws: random.Random) -> list[str]:
    """Return random words for a command line: options that it has, in part misspelt, and values of all kinds."""
    options = _options(name)
    words = []
    for _ in range(draws.randint(0, 5)):
        option = draws.choice(options)
        if draws.random() < 0.1:
            option = option[: draws.randint(1, len(option))] + draws.choice(["x", "", "="])
        words += [option, draws.choice(_WORDS)] if draws.random() < 0.9 else [draws.choice(_WORDS)]
    return words


def _options(name: str) -> list[str]:
    if name not in _KNOWN:
        _KNOWN[name] = sorted(set(re.findall(r"--[a-z][\w.-]*", COMMANDS[name](["--help-all"]))))
    return _KNOWN[name]


_KNOWN: dict[str, list[str]] = {}


@dataclass
class Outcome:
    """What became of the inputs of one target."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    messages: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0


class Hang(Exception):
    """An input took too long."""


def check(outcome: Outcome, name: str, draws: random.Random, folder: Path) -> None:
    """Make one input and count what becomes of it.

    Raises:
        Exception: it was neither read nor refused by a clear line.
    """
    outcome.inputs += 1
    try:
        if name in COMMANDS:
            COMMANDS[name](command_line(name, draws))
        else:
            read_one(FILES[name], mutated(draws.choice(FILES[name].seeds()), draws), folder)
        outcome.read += 1
    except (InputError, AttackError, OSError) as error:
        outcome.refused += 1
        outcome.messages.add(re.sub(r"\(.*\)|'.*'|\S*/\S*|[\d,.x]+", "#", _clear(error)))


def _clear(error: Exception) -> str:
    """Return the line that people see.

    Raises:
        ValueError: it is empty, or could rewrite a terminal.
    """
    message = one_line(error)
    if not message.isprintable() or not message:
        raise ValueError(f"the message is {message!r}") from error
    return message


def read_one(target: Target, content: bytes, folder: Path) -> None:
    """Read the content as a file alone in a folder."""
    folder.mkdir(parents=True)
    try:
        path = folder / f"input{target.suffix}"
        path.write_bytes(content)
        target.read(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fuzz(name: str, inputs: int, seed: int) -> Outcome:
    """Try inputs for one target in a process of its own, which may die without harm."""
    if name in FILES:
        FILES[name].seeds()  # made here, once for all
    with tempfile.TemporaryDirectory() as scratch:
        receive, send = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=_work, args=(name, inputs, seed, scratch, send)
        )
        child.start()
        send.close()
        outcome = Outcome()
        with contextlib.suppress(EOFError):
            while True:
                outcome = receive.recv()
        child.join()
        if child.exitcode != 0:
            outcome.failures.append(f"the process ended with {child.exitcode} after input {outcome.inputs}")
    return outcome


def _work(name: str, inputs: int, seed: int, scratch: str, send: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.chdir(scratch)
    os.environ["LABELBANDIT_DATA"] = f"{scratch}/data"

    def hang(*_: object) -> None:
        raise Hang(f"over {SECONDS} s")

    signal.signal(signal.SIGALRM, hang)
    outcome, begun = Outcome(), time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(inputs):
        signal.alarm(SECONDS)
        try:
            check(outcome, name, random.Random(f"{seed} {name} {number}"), Path(scratch) / "work")
        except BaseException:
            outcome.failures.append(f"input {number}: {traceback.format_exc()[-1500:]}")
        signal.alarm(0)
        outcome.seconds = time.perf_counter() - begun
        outcome.megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if number % 50 == 49 or number == inputs - 1:
            send.send(outcome)
    if outcome.megabytes > MEGABYTES:
        outcome.failures.append(f"{outcome.megabytes:.0f} MiB of memory")
        send.send(outcome)


def atheris(name: str, arguments: list[str]) -> None:
    """Fuzz one file target by coverage; ``arguments`` are libFuzzer's."""
    import atheris as engine

    target, scratch = FILES[name], Path(tempfile.mkdtemp()) / "work"
    corpus = scratch.parent / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(seed)

    def test(content: bytes) -> None:
        try:
            read_one(target, content, scratch)
        except (InputError, OSError) as error:
            _clear(error)

    for module in [
        m for key, m in sys.modules.items() if key.partition(".")[0] in ("envs", "agents", "eval")
    ]:
        for key, function in list(vars(module).items()):  # not PyTorch's hundred thousand
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                setattr(module, key, engine.instrument_func(function))
    engine.Setup([sys.argv[0], *arguments, str(corpus)], test)
    engine.Fuzz()


def table(found: dict[str, Outcome], seconds: float, seed: int) -> str:
    """Return the section of the report."""
    inputs, failures = sum(o.inputs for o in found.values()), sum(len(o.failures) for o in found.values())
    lines = [
        "## Damaged and hostile inputs",
        "",
        f"`python -m benchmarks.reliability.fuzz --seed {seed}`: {inputs:,} inputs in {seconds:,.0f} s of one core; "
        f"{sum(o.refused for o in found.values()):,} refused by one clear line, "
        f"{sum(o.read for o in found.values()):,} read (the change did no harm), {failures} failures: tracebacks, "
        "crashes, hangs, bursts of memory, or control characters in a message.",
        "",
        "| input | number | read | refused | different messages | failures |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, o in found.items():
        lines.append(
            f"| {name} | {o.inputs:,} | {o.read:,} | {o.refused:,} | {len(o.messages)} | {len(o.failures)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="altogether")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="", help="targets whose names contain this; nothing is recorded then"
    )
    parser.add_argument(
        "--atheris", help="this target by coverage; further arguments are libFuzzer's, e.g. -runs=1000"
    )
    options, more = parser.parse_known_args()
    if options.atheris:
        atheris(options.atheris, more)
    names = [name for name in (*FILES, *COMMANDS) if options.only in name]
    shares = {name: SHARES.get(name, 1.0) for name in names}
    found, start = {}, time.perf_counter()
    for name in names:
        found[name] = fuzz(name, round(options.inputs * shares[name] / sum(shares.values())), options.seed)
        outcome = found[name]
        print(
            name,
            {**vars(outcome), "messages": len(outcome.messages), "failures": len(outcome.failures)},
            flush=True,
        )
        for failure in outcome.failures[:3]:
            print(failure, flush=True)
    text = table(found, time.perf_counter() - start, options.seed)
    print(text)
    if not options.only:
        figures = {name: vars(o) | {"messages": len(o.messages)} for name, o in found.items()}
        record("fuzz", {"targets": figures}, text)
    return int(any(outcome.failures for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
