"""The command line ``python -m eval.transfer``: images made on every run, shown to every run."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agents.common.protocols import default_eps
from agents.common.run_dir import resolve_device
from envs.errors import InputError, unknown_name
from eval.attack.runner import check_batch_size
from eval.core.formatting import make_table, print_table, with_interval
from eval.core.plot_style import heat_map, panels, save_figure, shorten
from eval.core.progress import warn_about
from eval.core.targets import Target, check_fit
from eval.core.threats import Threat, parse_eps, parse_norm
from eval.transfer.matrix import CRAFTS, Matrix, defined, fill
from eval.transfer.options import TransferCommand
from eval.transfer.options import main as main


def transfer_command(config: TransferCommand) -> int:
    """Fill the source x target matrix; print it, write JSON and a picture."""
    check_batch_size(config.batch_size)
    if len(config.targets) < 2:
        raise InputError(f"{len(config.targets)} model given; expected at least two to transfer between")
    if config.steps < 1:
        raise InputError(f"--steps is {config.steps}; expected at least 1")
    if not config.crafts:
        raise InputError(f"no craft given; name one or more of {', '.join(CRAFTS)} with --crafts")
    for craft in config.crafts:
        if craft not in CRAFTS:
            raise unknown_name("way to make transfer images", craft, CRAFTS)
    norm = parse_norm(config.norm)
    given = None if config.eps is None else parse_eps(config.eps, norm)
    device = resolve_device(config.device)
    targets = [config.model.load(text, device) for text in config.targets]
    if len({target.sha256 for target in targets}) < len(targets):
        raise InputError("two of the models have the same weights; name each model once")
    samples = config.data.load(targets[0])
    threat = Threat(norm, default_eps(norm, samples.channels) if given is None else given)
    crafts = [craft for craft in config.crafts if defined(craft, threat)]
    if not crafts:
        raise InputError(f"the paper's protocol does not exist for {norm}; add --crafts strong")
    for target in targets:
        check_fit(target, samples)
        warn_about(target, samples, [threat], "mifpe")
    out = config.out or targets[0].results_dir / "transfer"
    stem = f"transfer-{threat.slug}-{config.steps}-{len(samples)}-s{config.seed}"
    options: dict[str, Any] = {key: getattr(config, key) for key in ("steps", "seed", "batch_size", "force")}
    options |= {"crafts": crafts, "report": lambda line: print(line, file=sys.stderr, flush=True)}
    matrix = fill(out / f"{stem}.json", targets, samples, threat, **options)
    title = f"{samples.name} ({samples.split}, n = {len(samples)}), {threat}"
    names = shorten(target.name for target in targets)
    # A row per source, a column per target; the diagonal is the white-box attack.
    for craft in ("clean", *crafts):
        table = make_table(f"{craft}: {title}", ("made on",), [f"shown to {name}" for name in names])
        for k, source in enumerate(targets if craft != "clean" else [None]):
            found = [matrix.entry(craft, (source or target).sha256, target.sha256) for target in targets]
            cells = [with_interval(item.accuracy, item.interval) for item in found if item is not None]
            table.add_row("nothing" if source is None else names[k], *cells)
        print_table(table)
    save_figure(out / f"{stem}.png", transfer_figure(matrix, crafts, targets, title))
    print(f"figures: {out / stem}.json\npicture: {out / stem}.png")
    return 0


def transfer_figure(matrix: Matrix, crafts: Sequence[str], targets: Sequence[Target], title: str) -> Figure:
    """Return one heat map per craft: sources down, targets across, accuracy in percent."""
    n, names = len(targets), shorten((target.name for target in targets), 20)
    figure, grid = panels(1, len(crafts), (len(crafts) * (2.2 + 0.7 * n), 1.8 + 0.55 * n), title)
    for axes, craft in zip(grid[0], crafts, strict=True):
        pairs = [[matrix.entry(craft, source.sha256, item.sha256) for item in targets] for source in targets]
        shares = np.asarray([[item.accuracy for item in row if item is not None] for row in pairs])
        shown = heat_map(axes, shares, names, craft)
    figure.colorbar(shown, ax=list(grid[0]), label="accuracy (%)")
    return figure
