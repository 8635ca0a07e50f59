"""Tables of one or several analysed models: their indicators, and directions by both definitions."""

from collections.abc import Sequence

from rich.table import Table
from torch import Tensor

from eval.core.formatting import make_table, percent
from eval.mechanism.analysis import Analysis
from eval.mechanism.directions import Directions
from eval.mechanism.static_indicators import spread


def summary_table(analyses: Sequence[Analysis]) -> Table:
    """Return the indicators' medians over the images (means where a share is meant), one column per model."""
    first = analyses[0]
    title = f"Mechanism, {first.threat}, n = {len(first.x)} (medians over images)"
    table = make_table(title, ("indicator",), [analysis.name for analysis in analyses])
    columns = [_summary(analysis) for analysis in analyses]
    for row in columns[0]:
        table.add_row(row, *(column[row] for column in columns))
    return table


def _summary(analysis: Analysis) -> dict[str, str]:
    static, dynamic = analysis.static, analysis.dynamic
    return {
        "input-gradient norm": _median(static.gradient_norm),
        "input-gradient norm, float64": _median(static.gradient_norm64),
        "gradients exactly zero": percent(float(static.zero.float().mean())),
        "gradients under the cleverhans floor": percent(float(static.under_floor.float().mean())),
        "direction under noise (cosine)": _median(static.stability),
        "local nonlinearity": _median(static.nonlinearity),
        "margin (logits)": _median(static.margin),
        "logit scale": _median(static.logit_scale),
        "input curvature": _median(static.curvature.abs()),
        "along PGD: gradient norm": _median(dynamic.gradient_norm),
        "entropy, clean (bits)": _median(analysis.clean.bits),
        "entropy, attacked (bits)": _median(analysis.attacked.bits),
    }


def _median(values: Tensor) -> str:
    median = spread(values)["median"]
    return "-" if median is None else f"{median:.3g}"


def direction_table(analyses: Sequence[Analysis]) -> Table:
    """Return the indicators of directions, means over steps and images: true and clamped, float32 and float64."""
    headings = ("true", "published", "true, float64", "published, float64")
    title = "Directions along the paths: true, and as published, divided by max(1e-12, |g|) (means)"
    table = make_table(title, ("model", "path", "indicator"), headings)
    for analysis in analyses:
        for path, single in analysis.paths.items():
            pairs = [_directions(found) for found in (single, single.double)]
            for name, *cells in zip(pairs[0], *(pair.values() for pair in pairs), strict=True):
                table.add_row(analysis.name, path, name, *(text for pair in cells for text in pair))
            table.add_section()
    return table


def _directions(found: Directions | None) -> dict[str, tuple[str, str]]:
    """Return every indicator by the true and by the published definition."""
    names = ("cosine to the previous", "equal signs", "dispersion between images", "diversity of the path")
    if found is None:
        return dict.fromkeys((*names, "gradients under the clamp"), ("-", "-"))
    signs = f"{float(found.same_sign.mean()):.3f}"
    values = (
        (_mean(found.cosine), _mean(found.clamped_cosine)),
        (signs, signs),
        (_mean(found.dispersion), _mean(found.clamped_dispersion)),
        (f"{found.drift:.3f}", f"{found.clamped_drift:.3f}"),
        ("-", percent(float(found.clamped.float().mean()))),
    )
    return dict(zip((*names, "gradients under the clamp"), values, strict=True))


def _mean(values: Tensor) -> str:
    mean = float(values.double().nanmean())
    return "-" if mean != mean else f"{mean:.3f}"
