"""The command line ``python -m eval.mechanism``: why one or several models resist, side by side."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.status import Status
from torch import Tensor

from agents.common.protocols import default_eps
from agents.common.run_dir import resolve_device, versions
from envs.errors import InputError
from envs.files import write_atomic, write_json
from envs.sampling import spread
from eval.core.formatting import percent, print_table
from eval.core.plot_style import save_figure
from eval.core.targets import Samples
from eval.core.threats import Threat, parse_eps, parse_norm
from eval.mechanism.analysis import Analysis, analyse, direction_table, shared_planes, summary_table
from eval.mechanism.landscape import Landscape
from eval.mechanism.landscape_plots import landscape_figure, shared_figure
from eval.mechanism.options import MechanismCommand
from eval.mechanism.options import main as main
from eval.mechanism.plots import adversarial_grid, dynamic_figure, entropy_figure, static_figure
from eval.report.gallery import pack_gallery

_GRID_IMAGES = 10


def mechanism_command(config: MechanismCommand) -> int:
    """Measure loss landscapes, input gradients and entropies of one or several models, side by side."""
    if not config.targets:
        raise InputError("no model given; name run directories, .zip files or package.module:factory")
    norm = parse_norm(config.norm)
    eps = None if config.eps is None else parse_eps(config.eps, norm)
    device = resolve_device(config.device)
    targets = [config.model.load(spec, device) for spec in config.targets]
    first, *others = (config.data.load(target) for target in targets)
    for other in others:
        if (other.fingerprint, other.indices.tolist()) != (first.fingerprint, first.indices.tolist()):
            remedy = "name one --dataset for all, or measure them one by one"
            raise InputError(f"the models are for different images ({first.name} and {other.name}); {remedy}")
    threat = Threat(norm, default_eps(norm, first.channels) if eps is None else eps)
    analyses, console = [], Console(stderr=True)
    for target in targets:
        with console.status(target.name) if config.progress else nullcontext() as status:
            say = partial(_say, status, target.name)
            analyses.append(analyse(target, first, threat, config.analysis, seed=config.seed, say=say))
    out = config.out or targets[0].results_dir / "mechanism"
    out.mkdir(parents=True, exist_ok=True)
    for table in (summary_table(analyses), direction_table(analyses)):
        print_table(table)
    planes = shared_planes(targets, first, analyses, config.analysis, seed=config.seed)
    for path in write_mechanism(out, analyses, first, planes):
        print(path)
    for analysis in analyses:
        missing = 1 - min(analysis.single.answered, analysis.average.answered)
        if missing > 0:
            print(
                f"warning: {analysis.name}: no finite answer on {percent(missing)} of a landscape (grey); "
                "--clip-planes keeps its points in [0, 1]",
                file=sys.stderr,
            )
    return 0


def _say(status: Status | None, name: str, text: str) -> None:
    if status:
        status.update(f"{name}: {text}")


def write_mechanism(
    out: Path, analyses: Sequence[Analysis], samples: Samples, planes: Sequence[Sequence[Landscape]] = ()
) -> list[Path]:
    """Write the figures as JSON, every picture as PNG, images of the first model for reports; return the paths.

    ``planes``: of `shared_planes`, where they were drawn.
    """
    content = {
        "format": 1,
        **vars(analyses[0].threat),
        "data": samples.record() | {"n": len(samples)},
        "models": [analysis.figures() for analysis in analyses],
        "planes": [[item.figures() for item in owned] for owned in planes],
        "versions": versions(),
    }
    write_json(out / "mechanism.json", content)
    pictures = _pictures(analyses, samples.classes, planes)
    for stem, figure in pictures.items():
        save_figure(out / f"{stem}.png", figure)
    write_atomic(out / "gallery.npz", pack_gallery(*_examples(analyses[0])))
    return [out / "mechanism.json", *(out / f"{stem}.png" for stem in pictures), out / "gallery.npz"]


def _pictures(
    analyses: Sequence[Analysis], classes: Sequence[str], planes: Sequence[Sequence[Landscape]]
) -> dict[str, Figure]:
    threat = analyses[0].threat
    attack = f"under PGD, {threat}"
    named: dict[str, Analysis] = {}
    for k, analysis in enumerate(analyses):  # names that repeat are numbered
        named[f"{analysis.name} ({k + 1})" if analysis.name in named else analysis.name] = analysis
    published = {name: analysis.published for name, analysis in named.items() if analysis.published}
    pictures = {
        "landscape": landscape_figure({k: a.single for k, a in named.items()}, classes),
        "landscape-average": landscape_figure({k: a.average for k, a in named.items()}, classes),
        "gradients": static_figure({k: a.static for k, a in named.items()}),
        "path": dynamic_figure({k: a.dynamic for k, a in named.items()}, threat),
        "entropy": entropy_figure({k: (a.clean, a.attacked) for k, a in named.items()}, attack),
    }
    if published:
        pictures["path-published"] = dynamic_figure(published, threat, "pgd-paper")
    if planes:
        pictures["landscape-planes"] = shared_figure(list(named), planes)
    for k, (name, analysis) in enumerate(named.items()):
        stem = "adversarial" if len(named) == 1 else f"adversarial-{k + 1}"
        pictures[stem] = adversarial_grid(*_examples(analysis), classes, f"{name} {attack}")
    return pictures


def _examples(analysis: Analysis) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return some images, spread over all, the attacked ones, labels, and the logits of both."""
    rows = spread(len(analysis.x), _GRID_IMAGES)
    images = (analysis.x[rows].cpu(), analysis.dynamic.adversarial[rows].cpu())
    return *images, analysis.clean.labels[rows], analysis.clean.logits[rows], analysis.attacked.logits[rows]
