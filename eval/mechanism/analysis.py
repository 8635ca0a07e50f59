"""Why a classifier resists: landscapes, gradients and entropies of one model, measured together; their tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from agents.common.plain_numbers import takes_numbers
from attacks.core.losses import LOSSES
from envs.errors import InputError, unknown_name
from envs.sampling import spread
from eval.core.formatting import make_table, percent
from eval.core.targets import Samples, Target
from eval.core.threats import Threat
from eval.mechanism.entropy import EntropySplit, entropy_split
from eval.mechanism.landscape import Landscape, landscape
from eval.mechanism.options import AnalysisOptions
from eval.mechanism.path_indicators import Directions, DynamicIndicators, dynamic_indicators
from eval.mechanism.static_indicators import StaticIndicators, static_indicators, summary


@dataclass(frozen=True)
class Analysis:
    """All that was measured of one model."""

    name: str  #: of the model
    threat: Threat  #: norm and radius of the attack, and unit of the landscapes' axes
    x: Tensor  #: the images, (n, C, H, W)
    static: StaticIndicators  #: indicators at the images
    dynamic: DynamicIndicators  #: indicators along the path of PGD; its result is the attacked images
    clean: EntropySplit  #: predictions of the images
    attacked: EntropySplit  #: predictions of the attacked images
    single: Landscape  #: landscape of one image
    average: Landscape  #: landscape averaged over several
    #: indicators along the published path (pgd-paper), where it was followed
    published: DynamicIndicators | None = None

    def figures(self) -> dict[str, Any]:
        """Return every figure but the landscapes' points, as plain JSON."""
        return {
            "name": self.name,
            "static": self.static.figures(),
            "dynamic": self.dynamic.figures(),
            "published_path": None if self.published is None else self.published.figures(),
            "entropy": {"clean": self.clean.figures(), "attacked": self.attacked.figures()},
            "landscape": {"single": self.single.figures(), "average": self.average.figures()},
        }


@takes_numbers
def analyse(
    target: Target,
    samples: Samples,
    threat: Threat,
    options: AnalysisOptions,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Analysis:
    """Measure one model on all of the samples; ``seed``: of every random draw; ``say`` is told what is measured.

    Raises InputError or AttackError for a wrong option, or a model that cannot be attacked.
    """
    _check(options, len(samples))
    model, ids = target.model, samples.indices.to(target.device)
    x, y = samples.batch(slice(None), target.device)
    common: dict[str, Any] = {**vars(threat), "seed": seed}
    say("gradients at the images")
    about = {name: getattr(options, name) for name in ("loss", "draws", "power_iterations")}
    static = static_indicators(model, x, y, sample_ids=ids, **about, **common)
    path = common | {name: getattr(options, name) for name in ("steps", "loss", "double")}
    path["sample_ids"] = ids
    say("the path of PGD")
    dynamic = dynamic_indicators(model, x, y, protocol=options.protocol, **path)
    published = None
    if options.published_path and threat.norm != "L1":
        say("the published path")
        published = dynamic_indicators(model, x, y, protocol="cleverhans", box=False, **path)

    def surface(rows: Tensor, resolution: int) -> Landscape:
        say(f"landscape of {len(rows)} images, {resolution} x {resolution} points")
        place = {"resolution": resolution, "sample_ids": ids[rows], "clip": options.clip_planes, **common}
        return landscape(model, x[rows], y[rows], dynamic.adversarial[rows], **place)

    clean, attacked = (entropy_split(model, images, y) for images in (x, dynamic.adversarial))
    single = surface(torch.tensor([options.image]), options.resolution)
    average = surface(spread(len(x), options.average_images), options.average_resolution)
    return Analysis(target.name, threat, x, static, dynamic, clean, attacked, single, average, published)


@takes_numbers
def shared_planes(
    targets: Sequence[Target],
    samples: Samples,
    analyses: Sequence[Analysis],
    options: AnalysisOptions,
    *,
    seed: int = 0,
) -> list[list[Landscape]]:
    """Show every model the planes of all, for one image: by owner of the plane, then by model.

    As in the landscapes of arXiv 2606.12251 the first direction of a plane leads to the last point of the published
    path on its owner (of PGD, where that path was not followed), the second is random and the same in each plane but
    for the part along the first. ``analyses`` are those of ``targets``, in the same order; ``seed``: of the random
    direction; of ``options``, ``image``, ``plane_resolution`` and ``clip_planes`` count.
    """
    rows = slice(options.image, options.image + 1)
    x, y = samples.batch(rows, targets[0].device)
    place: dict[str, Any] = {"resolution": options.plane_resolution, "clip": options.clip_planes}
    place |= {"seed": seed, "sample_ids": samples.indices[rows].to(x.device)}

    def draw(target: Target, owner: Analysis) -> Landscape:
        attacked = (owner.published or owner.dynamic).adversarial[rows]
        return landscape(target.model, x, y, attacked, **vars(owner.threat), **place)

    return [[draw(target, owner) for target in targets] for owner in analyses]


def _check(options: AnalysisOptions, n: int) -> None:
    least = {"steps": 2, "resolution": 2, "average_images": 1, "average_resolution": 2}
    least |= {"plane_resolution": 2, "draws": 1, "power_iterations": 1}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is {getattr(options, name)}; expected at least {smallest}")
    if not 0 <= options.image < n:
        expected = f"expected 0 to {n - 1}, a place among the chosen images"
        raise InputError(f"--image is {options.image}; {expected}")
    if options.loss not in LOSSES:
        raise unknown_name("loss", options.loss, LOSSES)


def summary_table(analyses: Sequence[Analysis]) -> Table:
    """Return the indicators' medians over the images (means where a share is meant), one column per model."""
    first = analyses[0]
    title = f"Mechanism, {first.threat}, n = {len(first.x)} (medians over images)"
    table = make_table(title, ("indicator",), [analysis.name for analysis in analyses])
    for row, value in _SUMMARY.items():
        table.add_row(row, *(_median(value(analysis)) for analysis in analyses))
    return table


def _median(values: Tensor) -> str:
    if values.dtype == torch.bool:
        return percent(float(values.float().mean()))
    median = summary(values)["median"]
    return "-" if median is None else f"{median:.3g}"


_SUMMARY: dict[str, Callable[[Analysis], Tensor]] = {
    "input-gradient norm": lambda a: a.static.gradient_norm,
    "input-gradient norm, float64": lambda a: a.static.gradient_norm64,
    "gradients exactly zero": lambda a: a.static.zero,
    "gradients under the cleverhans floor": lambda a: a.static.under_floor,
    "direction under noise (cosine)": lambda a: a.static.stability,
    "local nonlinearity": lambda a: a.static.nonlinearity,
    "margin (logits)": lambda a: a.static.margin,
    "logit scale": lambda a: a.static.logit_scale,
    "input curvature": lambda a: a.static.curvature.abs(),
    "along PGD: gradient norm": lambda a: a.dynamic.gradient_norm,
    "entropy, clean (bits)": lambda a: a.clean.bits,
    "entropy, attacked (bits)": lambda a: a.attacked.bits,
}


def direction_table(analyses: Sequence[Analysis]) -> Table:
    """Return the indicators of directions, means over steps and images: true and clamped, float32 and float64."""
    headings = ("true", "published", "true, float64", "published, float64")
    title = "Directions along the paths: true, and as published, divided by max(1e-12, |g|) (means)"
    table = make_table(title, ("model", "path", "indicator"), headings)
    for analysis in analyses:
        for path, single in (("PGD", analysis.dynamic), ("pgd-paper", analysis.published)):
            if single is None:
                continue
            for row, names in _DIRECTIONS.items():
                cells = (_mean(found, name) for found in (single, single.double) for name in names)
                table.add_row(analysis.name, path, row, *cells)
            table.add_section()
    return table


_DIRECTIONS = {  # every indicator by the true and by the published definition
    "cosine to the previous": ("cosine", "clamped_cosine"),
    "equal signs": ("same_sign", "same_sign"),
    "dispersion between images": ("dispersion", "clamped_dispersion"),
    "diversity of the path": ("drift", "clamped_drift"),
    "gradients under the clamp": ("", "clamped"),
}


def _mean(found: Directions | None, name: str) -> str:
    if found is None or not name:
        return "-"
    mean = float(torch.as_tensor(getattr(found, name)).double().nanmean())
    return percent(mean) if name == "clamped" else "-" if mean != mean else f"{mean:.3f}"
