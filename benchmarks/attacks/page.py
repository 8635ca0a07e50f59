"""The page that the attacks' benchmark writes: tables of times and outcomes, each beside its goal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.common import machine_line

# Least ratios of speed that are aimed at, on adversarially trained and on fragile classifiers.
GOALS = {"pgd": (1.2, 3.0), "standard": (5.0, 8.0), "fast": (10.0, 25.0)}
_POINTS = 0.003
_AGREEMENT = 0.99
_MEMORY = 4096


def page(payload: Mapping[str, Any]) -> str:
    """Return the Markdown page of a benchmark's payload."""
    lines = ["# Attacks: speed and agreement", "", _INTRODUCTION, ""]
    lines += ["## PGD, 100 steps, Linf", "", _PGD, "", *table(_PGD_HEADINGS, _pgd_rows(payload["pgd"])), ""]
    cells = payload["autoattack"]
    lines += ["## AutoAttack against the published code", "", _AUTOATTACK, ""]
    lines += [*table(_SPEED_HEADINGS, _speed_rows(cells)), ""]
    processors = sorted({cell["cpu"] for cell in cells if "cpu" in cell})
    lines += [f"Rows with a load were measured on: {', '.join(processors)}.", ""] if processors else []
    lines += [
        "## What the passes alone cost",
        "",
        _PASSES,
        "",
        *table(_PASSES_HEADINGS, _passes_rows(payload["passes"])),
        "",
    ]
    lines += ["## The same outcomes?", "", _AGREE, "", *table(_AGREE_HEADINGS, _agree_rows(cells)), ""]
    lines += ['## Is "fast" as strong?', "", _FAST, "", *table(_FAST_HEADINGS, _fast_rows(cells)), ""]
    lines += [
        "## Memory",
        "",
        _MEMORY_TEXT,
        "",
        *table(_MEMORY_HEADINGS, _memory_rows(payload["memory"])),
        "",
    ]
    lines += [machine_line(payload["machine"]), "", _REPEAT]
    return "\n".join(lines)


_INTRODUCTION = (
    "Networks `small` of this project, trained on clean images (fragile) or by PGD in the Linf ball (adversarial), "
    "attacked at radii that leave the former nothing and the latter a quarter or more. Times are CPU seconds of one "
    "thread, contestants one after another in one process, on the same classifier and images; on a busy machine (see "
    "the load below) they are noisy. A ratio is the other's time by ours; its goal stands behind it. Robust accuracy "
    "is verified by the classifier on the images that an attack returned."
)
_PGD = (
    "Images that are classified correctly; survivors are those of them that PGD with two restarts does not break, so "
    "that none can leave early. Steps of eps/8, medians over turns, each from another random start; accuracies are "
    "means."
)
_AUTOATTACK = (
    "Published: pyautoattack's standard evaluation in batches of 250. Standard and fast: `attacks.autoattack`, all "
    "images at once. Medians of five turns after one for warming up; of one turn where the published takes over "
    "twenty seconds. CIFAR-10: its images as JPEG, four passes of training. "
    "Earlier runs: the ratios of whole runs before this one, on other machines or loads. Former: measured before the "
    "version changed."
)
_PASSES = (
    "AutoAttack on fewer images of the adversarial classifiers: thousands of passes, forward alone and forward with "
    "backward, and what so many cost in a bare loop of the same process, timed before and after: ours in full batches "
    "in the layout of our attacks, the forward ones traced; the published in its batches on the model as it is. The "
    "share is that cost by the attack's time, over 100 % where its passes ran faster than the loop's; the limit is the "
    "ratio if our attack did nothing but these passes. Load is the machine's, by which one CPU second differs from "
    "another."
)
_AGREE = (
    "Standard, ours and the published, on the first test images, each with its own random numbers. Agreement is the "
    "share of images with the same fate. Aim: within .3 points, 99 % agreement. On few images one of them is more than "
    "that. Given the published random numbers, in float64, the suite finds the attacks equal step by step."
)
_FAST = (
    'Standard: the lower accuracy of ours and the published; aim: that of "fast" is no higher. Missed are images that '
    '"fast" leaves and at least one of the two standards breaks, extra those that "fast" alone breaks; for two seeds.'
)
_MEMORY_TEXT = (
    "Peak resident memory beyond libraries and network, a tiny network, images of 3x32x32 and the results included; "
    "few iterations, on whose number it does not depend. Aim: under 4096 MiB."
)
_REPEAT = (
    "Repeat with `python -m benchmarks.attacks --data-root DIR` (MNIST lies in DIR; without it, digits alone); "
    "CIFAR-10 with `--datasets cifar10`, from DIR as published or as images in DIR/cifar10jpg. Peers: "
    "`pip install pyautoattack foolbox`, `pip install torchattacks --no-deps`, and for adv-lib, whose visdom builds "
    'with an older setuptools alone, `pip install "setuptools<81" wheel && pip install --no-build-isolation adv-lib`.'
)
_PGD_HEADINGS = ("classifier", "images", "contestant", "seconds", "ratio", "goal", "robust accuracy")
_SPEED_HEADINGS = (
    "classifier",
    "threat",
    "images",
    "contestant",
    "seconds",
    "ratio",
    "earlier runs",
    "goal",
    "robust accuracy",
    "load",
)
_PASSES_HEADINGS = (
    "classifier",
    "threat",
    "images",
    "contestant",
    "forward",
    "with backward",
    "seconds",
    "ratio",
    "passes alone",
    "share",
    "limit",
    "load",
)
_AGREE_HEADINGS = ("classifier", "threat", "images", "published", "ours", "difference", "agreement", "aim")
_FAST_HEADINGS = ("classifier", "threat", "images", "seed", "standard", "fast", "missed", "extra", "aim")
_MEMORY_HEADINGS = ("version", "images", "images alone, MiB", "peak, MiB", "aim")


def _pgd_rows(cells: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for cell in cells:
        fragile = cell["setting"].endswith("fragile")
        goal = GOALS["pgd"][fragile] if fragile or cell["survivors"] else None
        fastest = min(cell["ratio"], key=cell["ratio"].get)
        images = f"{cell['images']} {'survivors' if cell['survivors'] else 'correct'}"
        for name, seconds in cell["seconds"].items():
            yield (
                cell["setting"],
                images,
                name,
                f"{median(seconds):.2f}",
                f"{cell['ratio'][name]:.2f}" if name in cell["ratio"] else "",
                against_goal(cell["ratio"][name], goal) if name == fastest and goal else "",
                f"{cell['robust_accuracy'][name]:.1%}",
            )


def _speed_rows(cells: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for cell in cells:
        published = cell["outcomes"]["published"]
        fragile = cell["setting"].endswith("fragile")
        for name in ("published", "standard 0", "fast 0", "fast 1"):
            outcome, version = cell["outcomes"][name], name.split()[0]
            ratio = published["seconds"] / outcome["seconds"]
            yield (
                *_what(cell),
                name if version == "published" else f"{version}, seed {name[-1]}{_age(cell, version)}",
                f"{outcome['seconds']:.2f}",
                "" if version == "published" else f"{ratio:.1f}",
                ", ".join(earlier_ratios(cell, name)),
                "" if version == "published" else against_goal(ratio, GOALS[version][fragile]),
                f"{outcome['robust_accuracy']:.1%}",
                f"{cell['load']:.0f}" if "load" in cell else "",
            )


def _passes_rows(cells: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for cell in cells:
        published = cell["contestants"]["published"]["seconds"]
        for name, found in cell["contestants"].items():
            ours = name != "published"
            yield (
                *_what(cell),
                name,
                *(f"{found['passes'][kind] / 1000:.1f}" for kind in ("forward", "backward")),
                f"{found['seconds']:.2f}",
                f"{published / found['seconds']:.1f}" if ours else "",
                f"{found['bare_seconds']:.2f}",
                f"{found['bare_seconds'] / found['seconds']:.0%}",
                f"{published / found['bare_seconds']:.1f}" if ours else "",
                f"{cell['machine']['load']:.0f}",
            )


def _agree_rows(cells: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for cell in cells:
        published, ours = cell["outcomes"]["published"], cell["outcomes"]["standard 0"]
        apart = set(published["survived"]) ^ set(ours["survived"])
        agreement = 1 - len(apart) / cell["images"]
        difference = ours["robust_accuracy"] - published["robust_accuracy"]
        met = abs(difference) <= _POINTS and agreement >= _AGREEMENT
        yield (
            *_what(cell),
            f"{published['robust_accuracy']:.1%}",
            f"{ours['robust_accuracy']:.1%}",
            f"{100 * difference:+.1f}",
            f"{agreement:.1%}",
            _verdict(met),
        )


def _fast_rows(cells: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for cell in cells:
        outcomes = cell["outcomes"]
        standards = [outcomes[name] for name in ("standard 0", "published")]
        lowest = min(outcome["robust_accuracy"] for outcome in standards)
        left = set.intersection(*(set(outcome["survived"]) for outcome in standards))
        for seed in ("0", "1"):
            fast = outcomes[f"fast {seed}"]
            survived = set(fast["survived"])
            yield (
                *_what(cell),
                seed + _age(cell, "fast"),
                f"{lowest:.1%}",
                f"{fast['robust_accuracy']:.1%}",
                str(len(survived - left)),
                str(len(left - survived)),
                _verdict(fast["robust_accuracy"] <= lowest),
            )


def _memory_rows(cells: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for cell in cells:
        peak = cell["mebibytes"]
        yield (
            cell["version"],
            f"{cell['images']:,}",
            f"{cell['of_images']:.0f}",
            f"{peak:.0f}",
            _verdict(peak < _MEMORY),
        )


def earlier_ratios(cell: Mapping[str, Any], name: str) -> Iterator[str]:
    """The ratios of a contestant in earlier runs on these images, where its version was the same."""
    for run in cell.get("earlier", ()):
        if name in run["ratios"] and name.split()[0] not in run.get("former", ()):
            yield f"{run['ratios'][name]:.1f}"


def _age(cell: Mapping[str, Any], version: str) -> str:
    """What stands behind a version that has changed since the cell was measured, as the cell says."""
    return " (former)" if version in cell.get("former", ()) else ""


def _what(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return cell["setting"], f"{cell['norm']} {cell['eps']:g}", str(cell["images"])


def against_goal(ratio: float, goal: float) -> str:
    """The ``goal`` of a ``ratio``, and whether it is met."""
    return f"{goal:g}, {_verdict(ratio >= goal)}"


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
