"""Robustness against training length, from the outcomes that ship: ``python -m benchmarks.mirage``.

Reads every ``docs/results/trajectory/*/trajectory.json.xz`` and writes ``docs/images/mirage.png`` and
``docs/results/trajectory.md``. Nothing is trained or attacked; ``docs/results/study.md`` names the commands that made
the outcomes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import msgspec
import numpy as np

from benchmarks.common import RESULTS
from envs.files import write_atomic
from eval.core.formatting import count, percent, with_interval
from eval.core.plot_style import save_figure
from eval.core.records import share
from eval.core.stats import wilson
from eval.study.results.claims import verdict
from eval.study.results.statistics import compare_pairs
from eval.trajectory.outputs import alike, by_regime, claimed, scalars, trajectory_figure
from eval.trajectory.record import SUFFIX, Point, Trajectory, read_trajectories

FOLDER = RESULTS / "trajectory"
PICTURE = RESULTS.parent / "images" / "mirage.png"
_NAMES = {"mnist": "MNIST", "cifar10jpg": "CIFAR-10 (JPEG)"}
_SHOWN = ("SL", "RL")
# Regimes in the picture, by file; the tables have all of both.
_PICTURED = {"cifar10-jpeg": ("SL",), "cifar10-jpeg-600": ("RL",), "mnist": _SHOWN}
_INDICATORS = {
    "gradient_norm": ".1e",
    "cosine": ".3f",
    "clamped_cosine": ".3f",
    "margin": ".1f",
    "entropy": ".1e",
}


def _mean(points: Sequence[Point], name: str) -> float | None:
    values = [found[name] for point in points if name in (found := scalars(point))]
    return fmean(values) if values else None


def _together(members: Sequence[Trajectory]) -> Iterator[list[Point]]:
    """Yield the points of all seeds at every number of images at which each seed has one."""
    runs = [{point.images: point for point in member.points} for member in members]
    for images in sorted(set.intersection(*(set(points) for points in runs))):
        yield [points[images] for points in runs]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _course(members: Sequence[Trajectory]) -> list[str]:
    """Return the table of one regime through training."""
    attacks = list(members[0].points[-1].attacks)
    rows = []
    for points in _together(members):
        n = len(points[0].clean)
        left = fmean(share(point.left) for point in points)
        row = [count(points[0].images), percent(_mean(points, "clean"))]
        row += [percent(_mean(points, name)) for name in attacks]
        row += [
            with_interval(left, wilson(left * n, n)),
            percent(_mean(points, "shortened/pgd-cleverhans")),
        ]
        for name, form in _INDICATORS.items():
            value = _mean(points, name)
            row.append("-" if value is None else f"{value:{form}}")
        rows.append(row)
    headings = ["images seen", "clean", *attacks, "left [95 %]", "steps shortened"]
    headings += ["gradient norm", "cosine", "cosine, clamped", "logit margin", "entropy (bits)"]
    return _table(headings, rows)


def _comparisons(groups: dict[str, list[Trajectory]]) -> list[str]:
    """Return the tests of RL against SL on the same seeds, wherever both have seen the same number of images."""
    if not set(_SHOWN) <= groups.keys():
        return []
    runs = {name: {member.seed: member for member in groups[name]} for name in _SHOWN}
    seeds = sorted(runs["RL"].keys() & runs["SL"].keys())
    points = {
        name: {seed: {point.images: point for point in runs[name][seed].points} for seed in seeds}
        for name in _SHOWN
    }
    shared = [set(points[name][seed]) for name in _SHOWN for seed in seeds]
    rows = []
    for images in sorted(set.intersection(*shared)) if shared else ():
        for label, row_of in (("paper's protocol", claimed), ("left", lambda point: point.left)):
            pairs = [
                tuple(np.asarray(list(row_of(points[name][seed][images]))) == "1" for name in ("RL", "SL"))
                for seed in seeds
            ]
            found = compare_pairs(pairs)
            assert found is not None
            over = "-" if found.p_seeds is None else f"{found.p_seeds:.2g}"
            rows.append(
                [
                    count(images),
                    label,
                    f"{100 * found.difference:+.1f}",
                    f"{found.p_images:.2g}",
                    over,
                    verdict(found),
                ]
            )
    title = f"RL less SL at the same number of images, seeds {', '.join(map(str, seeds))}:"
    headings = ["images seen", "measure", "points", "p over images", "p over seeds", "RL is higher"]
    return [title, "", *_table(headings, rows)] if rows else []


def _read(path: Path) -> list[Trajectory]:
    """Return the trajectories of a file, data sets by the names that people know."""
    found = read_trajectories(path)
    names = [_NAMES.get(item.data["dataset"], item.data["dataset"]) for item in found]
    return [
        msgspec.structs.replace(item, data=item.data | {"dataset": name})
        for item, name in zip(found, names, strict=True)
    ]


def page(files: dict[str, list[Trajectory]]) -> str:
    """Return the page of all tables."""
    lines = [
        "# Robustness through training: the tables",
        "",
        "Made by `python -m benchmarks.mirage` from the outcomes per image in [trajectory/](trajectory/); what they "
        "mean is in [study.md](study.md). Means over seeds; brackets: Wilson's 95 % interval over images. *left*: "
        "images that no attack inside [0, 1] breaks. *cosine*: of successive gradients along PGD, true, and by the "
        "authors' "
        "definition, whose clamp shortens small gradients.",
        "",
    ]
    for file, trajectories in files.items():
        for members in alike(trajectories):
            lines += [f"## {members[0].title} ({file})", ""]
            groups = by_regime(members)
            for regime, runs in groups.items():
                seeds = ", ".join(str(run.seed) for run in runs)
                lines += [f"{regime}, seeds {seeds}, {len(runs[0].indices)} images:", "", *_course(runs)]
            lines += _comparisons(groups)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the picture and the page."""
    files = {path.parent.name: _read(path) for path in sorted(FOLDER.glob(f"*/trajectory{SUFFIX}"))}
    write_atomic(RESULTS / "trajectory.md", page(files))
    shown = [found for name, regimes in _PICTURED.items() for found in files[name] if found.regime in regimes]
    save_figure(
        PICTURE, trajectory_figure(sorted(shown, key=lambda item: (item.title, _SHOWN.index(item.regime))))
    )
    print(RESULTS / "trajectory.md", PICTURE, sep="\n")


if __name__ == "__main__":
    main()
