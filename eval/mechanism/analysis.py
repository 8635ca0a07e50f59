"""Why a classifier resists: landscapes, gradients and entropies of one model, measured together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.common.plain_numbers import takes_numbers
from attacks.core.losses import LOSSES
from envs.errors import InputError, unknown_name
from envs.sampling import spread
from eval.core.targets import Samples, Target
from eval.core.threats import Threat
from eval.mechanism.entropy import EntropySplit, entropy_split
from eval.mechanism.landscape import Landscape, landscape
from eval.mechanism.options import AnalysisOptions
from eval.mechanism.path_indicators import DynamicIndicators, dynamic_indicators
from eval.mechanism.static_indicators import StaticIndicators, static_indicators


@dataclass(frozen=True)
class Analysis:
    """All that was measured of one model.

    Attributes:
        name: of the model.
        threat: norm and radius of the attack, and unit of the landscapes' axes.
        x: the images, (n, C, H, W).
        static: indicators at the images.
        dynamic: indicators along the path of PGD; its result is the attacked images.
        published: indicators along the published path (pgd-paper), where it was followed.
        clean: predictions of the images.
        attacked: predictions of the attacked images.
        single: landscape of one image.
        average: landscape averaged over several.
    """

    name: str
    threat: Threat
    x: Tensor
    static: StaticIndicators
    dynamic: DynamicIndicators
    clean: EntropySplit
    attacked: EntropySplit
    single: Landscape
    average: Landscape
    published: DynamicIndicators | None = None

    @property
    def paths(self) -> dict[str, DynamicIndicators]:
        """The indicators by the name of the path."""
        return {"PGD": self.dynamic} | ({} if self.published is None else {"pgd-paper": self.published})

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
    """Measure one model on all of the samples.

    ``seed``: of every random draw; ``say`` is told what is being measured.

    Raises:
        InputError, AttackError: a wrong option, or a model that cannot be attacked.
    """
    _check(options, len(samples))
    model, device = target.model, target.device
    x, y = samples.batch(slice(None), device)
    ids = samples.indices.to(device)
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

    return Analysis(
        name=target.name,
        threat=threat,
        x=x,
        static=static,
        dynamic=dynamic,
        clean=entropy_split(model, x, y),
        attacked=entropy_split(model, dynamic.adversarial, y),
        single=surface(torch.tensor([options.image]), options.resolution),
        average=surface(spread(len(x), options.average_images), options.average_resolution),
        published=published,
    )


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
    for the part along the first.

    Args:
        targets: the models; samples: their images.
        analyses: of the models, in the same order.
        options: ``image``, ``plane_resolution`` and ``clip_planes``.
        seed: of the random direction.
    """
    rows = slice(options.image, options.image + 1)
    x, y = samples.batch(rows, targets[0].device)
    place: dict[str, Any] = {"resolution": options.plane_resolution, "clip": options.clip_planes}
    place |= {"seed": seed, "sample_ids": samples.indices[rows].to(x.device)}
    planes = []
    for owner in analyses:
        attacked = (owner.published or owner.dynamic).adversarial[rows]
        drawn = (landscape(target.model, x, y, attacked, **vars(owner.threat), **place) for target in targets)
        planes.append(list(drawn))
    return planes


def _check(options: AnalysisOptions, n: int) -> None:
    least = {"steps": 2, "resolution": 2, "average_images": 1, "average_resolution": 2}
    least |= {"plane_resolution": 2, "draws": 1, "power_iterations": 1}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is {getattr(options, name)}; expected at least {smallest}")
    if not 0 <= options.image < n:
        raise InputError(
            f"--image is {options.image}; expected 0 to {n - 1}, a place among the chosen images"
        )
    if options.loss not in LOSSES:
        raise unknown_name("loss", options.loss, LOSSES)
