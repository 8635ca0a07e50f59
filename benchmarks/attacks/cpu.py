"""Our attacks beside the published ones: time on the same classifier and images, and whether the outcomes agree.

``python -m benchmarks.attacks`` trains small classifiers on digits (with ``--data-root`` also on MNIST, if asked for on
CIFAR-10), attacks each, and writes ``docs/results/attacks.{md,json}``. Times are CPU seconds of one thread,
contestants in turns in one process. Trainings and measurements are kept under ``runs/attacks`` and reused; delete that
folder to start afresh.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import attacks
from attacks.core.losses import misclassified
from benchmarks.attacks.memory import peak_memory
from benchmarks.attacks.models import EPS, Setting, classifier_of, test_images
from benchmarks.attacks.page import page
from benchmarks.attacks.passes import passes_cell, timed
from benchmarks.attacks.peers import load_peers, pgd_peer, published_autoattack
from benchmarks.common import RESULTS, describe_machine, kept, write_results
from benchmarks.packages import version_of
from envs.files import read_json

STEPS = 100
TURNS = 5
LONG = 20.0  # seconds of the published attack from which one turn is enough
PGD_PEERS = ("torchattacks", "foolbox", "adv-lib")
KINDS = ("pgd", "autoattack", "passes", "memory")


@dataclass(frozen=True)
class Plan:
    """What is measured on one data set.

    Attributes:
        pgd: images under PGD, clean errors left out.
        images: images under AutoAttack by norm, of the fragile and of the adversarial classifier.
        repeats: turns of each contestant of PGD.
        passes: images of the adversarial classifier whose passes are counted.
    """

    pgd: int
    images: dict[str, tuple[int, int]]
    repeats: int
    passes: int


PLANS = {
    "digits": Plan(256, {"Linf": (359, 359), "L2": (359, 359), "L1": (359, 200)}, 5, 40),
    "mnist": Plan(32, {"Linf": (200, 200), "L2": (200, 200), "L1": (100, 200)}, 2, 24),
    "cifar10": Plan(32, {"Linf": (0, 100), "L2": (0, 100), "L1": (0, 100)}, 2, 12),
}


def main(
    data_root: Path | None = None,
    datasets: tuple[str, ...] | None = None,
    peers: tuple[str, ...] = PGD_PEERS,
    kinds: tuple[str, ...] = KINDS,
    runs: Path = Path("runs/attacks"),
    memory_images: int = 10_000,
    measure: bool = True,
    write: bool = True,
) -> None:
    """Measure what is not measured yet, print the page and write it; what the results hold besides stays in them.

    Args:
        data_root: where MNIST and CIFAR-10 lie.
        datasets: digits, mnist, cifar10. Default: digits, and mnist with --data-root.
        peers: of PGD: torchattacks, foolbox, adv-lib.
        kinds: of measurements: pgd, autoattack, passes, memory.
        runs: where trainings and measurements are kept.
        memory_images: images of 3x32x32 in the measurement of memory.
        measure: False leaves out what is not measured yet.
        write: write ``docs/results/attacks.json`` and ``attacks.md``.
    """
    torch.set_num_threads(1)
    console = Console(stderr=True)
    if measure:
        load_peers((*(peers if "pgd" in kinds else ()), "pyautoattack"))
    store = Store(runs, measure, console)
    for setting in settings(datasets or (("digits", "mnist") if data_root else ("digits",))):
        model = classifier_of(setting, runs, data_root, console)
        plan = PLANS[setting.dataset]
        most = max(2 * plan.pgd, *(n for pair in plan.images.values() for n in pair))
        x, y = test_images(setting.dataset, most, data_root)
        for kind, run in cells(setting, plan, model, x, y, peers):
            if kind.split()[0] in kinds:
                store.add(kind.split()[0], f"{setting.name} {kind}", run)
    for version in ("standard", "fast") if "memory" in kinds else ():
        name = f"memory {version} {memory_images}"
        store.add("memory", name, partial(peak_memory, version, memory_images))
    machine = describe_machine()
    machine["versions"] |= {name: version_of(name) for name in (*peers, "pyautoattack")}
    payload = {"machine": machine, **store.found}
    if (earlier := RESULTS / "attacks.json").is_file():
        payload = merged(read_json(earlier), payload)
    text = page(payload)
    print(text)
    if write:
        data, markdown = write_results("attacks", payload, text)
        console.print(f"written: {data} and {markdown}")


def settings(datasets: tuple[str, ...]) -> list[Setting]:
    """Return a fragile and an adversarially trained classifier of each data set, where there are radii for it."""
    both = [Setting(dataset, adversarial) for dataset in datasets for adversarial in (False, True)]
    return [setting for setting in both if (setting.dataset, setting.adversarial) in EPS]


def cells(
    setting: Setting, plan: Plan, model: nn.Module, x: Tensor, y: Tensor, peers: tuple[str, ...]
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what is to be measured on a classifier, by name, as functions that do so."""
    eps = setting.eps
    for survivors in (False, True) if setting.adversarial else (False,):
        kind = f"pgd {'survivors' if survivors else 'correct'}"
        yield (
            kind,
            lambda survivors=survivors: {  # type: ignore[misc]
                "setting": setting.name,
                "eps": eps["Linf"],
                **pgd_cell(model, x, y, eps["Linf"], plan, peers, survivors),
            },
        )
    for norm, by_setting in plan.images.items():
        n = by_setting[setting.adversarial]
        yield (
            f"autoattack {norm} {eps[norm]} {n}",
            lambda norm=norm, n=n: {  # type: ignore[misc]
                "setting": setting.name,
                "norm": norm,
                "eps": eps[norm],
                **autoattack_cell(model, x[:n], y[:n], norm, eps[norm]),
            },
        )
    for norm in plan.images if setting.adversarial else ():
        yield (
            f"passes {norm} {eps[norm]} {plan.passes}",
            lambda norm=norm, n=plan.passes: {  # type: ignore[misc]
                "setting": setting.name,
                "norm": norm,
                "eps": eps[norm],
                **passes_cell(model, x[:n], y[:n], norm, eps[norm]),
            },
        )


def merged(earlier: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The results ``found`` now, and those of ``earlier`` that were not measured again, in their order.

    The machine described is that of ``found`` if PGD or memory was measured: other cells name their own.
    """
    keys = ("setting", "norm", "survivors", "version", "images")

    def by_key(cells: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {tuple(cell.get(key) for key in keys): cell for cell in cells}

    both = {kind: list((by_key(earlier.get(kind, [])) | by_key(found[kind])).values()) for kind in KINDS}
    known = by_key(earlier.get("autoattack", []))
    for key, cell in by_key(found["autoattack"]).items():
        if key in known and known[key]["outcomes"] != cell["outcomes"]:
            cell["earlier"] = [*known[key].get("earlier", ()), run_of(known[key])]
    timed_now = any(found[kind] for kind in ("pgd", "memory"))
    return {"machine": (found if timed_now else earlier)["machine"], **both}


def run_of(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an earlier run of AutoAttack: its ratios and its machine."""
    seconds = {name: outcome["seconds"] for name, outcome in cell["outcomes"].items()}
    ratios = {
        name: round(seconds["published"] / value, 2) for name, value in seconds.items() if name != "published"
    }
    former = {"former": cell["former"]} if "former" in cell else {}
    return {"ratios": ratios, "cpu": cell.get("cpu"), "load": cell.get("load"), **former}


def pgd_cell(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, plan: Plan, peers: tuple[str, ...], survivors: bool
) -> dict[str, Any]:
    """PGD-100 on images that are classified correctly, or on those of them that PGD does not break."""
    step = eps / 8
    keep = ~misclassified(logits_of(model, x), y)
    x, y = x[keep], y[keep]
    if survivors:
        left = ~attacks.pgd(
            model, x, y, norm="Linf", eps=eps, steps=STEPS, step_size=step, restarts=2
        ).success
        x, y = x[left], y[left]
    x, y = x[: plan.pgd], y[: plan.pgd]
    seed = 0  # as the peers', ours starts elsewhere in every turn
    work: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: (
            attacks.pgd(model, x, y, norm="Linf", eps=eps, steps=STEPS, step_size=step, seed=seed).adversarial
        )
    }
    work |= {name: pgd_peer(name, model, x, y, eps, step, STEPS) for name in peers}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    accuracy: dict[str, list[float]] = {name: [] for name in work}
    for seed in range(plan.repeats + 1):
        for name, run in work.items():
            taken, adversarial = timed(run)
            if seed:  # the first is for warming up
                seconds[name].append(taken)
                survived = ~misclassified(logits_of(model, adversarial), y)
                accuracy[name].append(survived.double().mean().item())
    return {
        "images": len(x),
        "survivors": survivors,
        "seconds": seconds,
        "robust_accuracy": {name: mean(values) for name, values in accuracy.items()},
        "ratio": {name: median(seconds[name]) / median(seconds["ours"]) for name in peers},
    }


def autoattack_cell(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> dict[str, Any]:
    """The standard version, ours and the published, and "fast", the latter under two seeds."""
    work: dict[str, Callable[[], Any]] = {"published": published_autoattack(model, x, y, norm, eps)}
    for version, seed in (("standard", 0), ("fast", 0), ("fast", 1)):
        work[f"{version} {seed}"] = partial(
            attacks.autoattack, model, x, y, norm=norm, eps=eps, version=version, seed=seed
        )
    seconds: dict[str, list[float]] = {name: [] for name in work}
    outcome: dict[str, dict[str, Any]] = {}
    for turn in range(1 + TURNS):
        for name, run in work.items():
            taken, found = timed(run)
            seconds[name].append(taken)
            if turn == 0:
                outcome[name] = _outcome(model, y, found)
        if turn == 0 and seconds["published"][0] > LONG:
            break
    for name, times in seconds.items():
        warm = times[1:] or times  # where turns are short, the first is for warming up
        outcome[name] |= {"seconds": median(warm), "turns": len(warm)}
    machine = describe_machine()
    return {"images": len(x), "outcomes": outcome, "cpu": machine["cpu"], "load": machine["load"]}


def _outcome(model: nn.Module, y: Tensor, found: Tensor | attacks.AutoAttackResult) -> dict[str, Any]:
    if isinstance(found, Tensor):
        return _survival(~misclassified(logits_of(model, found), y))
    return _survival(~found.success) | {
        "accuracies": found.accuracies(),
        "queries": int(found.queries.sum()),
        "backwards": int(found.backwards.sum()),
    }


def _survival(survived: Tensor) -> dict[str, Any]:
    return {
        "robust_accuracy": survived.double().mean().item(),
        "survived": survived.nonzero().squeeze(1).tolist(),
    }


class Store:
    """Measurements by kind, each made once and kept under ``runs``."""

    def __init__(self, runs: Path, measure: bool, console: Console) -> None:
        self.folder, self.measure, self.console = runs / "cells", measure, console
        self.found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}

    def add(self, kind: str, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Take up the measurement called ``name``, made now by ``run`` unless it is kept."""
        path = self.folder / f"{name.replace(' ', '-')}.json"
        if not path.is_file():
            if not self.measure:
                return
            self.console.print(f"measuring {name}")
        self.found[kind].append(kept(path, run))


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (n, K) of images (n, ...), in parts."""
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(500)])
