"""How figures are written in tables: percentages with intervals, shares, counts and times."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from eval.attack.results import AttackResults
from eval.core.stats import Interval


def percent(share: float | None) -> str:
    """Return ``26.8 %``; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def with_interval(share: float, interval: Interval) -> str:
    """Return ``26.8 % [22.4, 31.6]``."""
    return f"{percent(share)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def duration(seconds: float) -> str:
    """Return ``4.2 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(number: float) -> str:
    """Return a count in at most four figures: ``950``, ``12.3k``, ``4.56M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{number:.0f}"


def make_table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    """Return an empty table with columns of words (``left``) and then of numbers (``right``)."""
    table = Table(title=title)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table under its title, at full width where the output is not a terminal, so that files get all."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 160))
    title, table.title = table.title, None  # rich would wrap it to the width of the table
    console.print(title, style="bold", highlight=False, soft_wrap=True)
    console.print(table)


def attack_label(results: AttackResults) -> str:
    """Return what a table calls an attack: its name, its length, and the options that make it another attack."""
    options = results.attack
    words = [options["name"].replace("_", "-")]
    if "steps" in options and options["steps"] is not None:
        words[0] += f"-{options['steps']}"
    if options.get("loss", "ce") != "ce":
        words.append(options["loss"])
    if options.get("labels") == "predicted":
        words.append("own labels")
    if options.get("keep") == "last":
        words.append("last iterate")
    if not results.in_box:
        words.append("unclipped")
    if options.get("restarts", 1) not in (1, None):
        words.append(f"x{options['restarts']}")
    if options.get("sources"):
        words.append("from " + ", ".join(source["name"] for source in options["sources"]))
    if options.get("targeted"):
        words.append(f"targeted: {options['targeted']}")
    return " ".join(words)


def protocol_label(results: AttackResults) -> str:
    """Return protocol or version of an attack; a dash where it has neither."""
    found = results.attack.get("protocol") or results.attack.get("version") or "-"
    text = found if isinstance(found, str) else "+".join(map(str, found))
    return text if results.in_box else f"{text}, may leave [0, 1]"


def attack_cells(results: AttackResults) -> Sequence[str]:
    """Return protocol (or version), robust accuracy, share of shortened steps, queries per image, time."""
    return (
        protocol_label(results),
        with_interval(results.robust_accuracy, results.interval),
        percent(results.shortened if results.threat.norm == "L2" else None),
        count(float(results.queries.mean())),
        duration(results.cost.get("seconds", 0.0)),
    )


def blame_line(results: AttackResults) -> str | None:
    """Return how many images each stage of the attack was the first to break; None if it has no stages."""
    names = [name for name in results.broken_by if name is not None]
    if set(names) <= {"clean", results.attack["name"]}:
        return None
    tally = {name: names.count(name) for name in dict.fromkeys(sorted(names))}
    return "broken by: " + ", ".join(f"{name} {number}" for name, number in tally.items())


ATTACK_HEADINGS = ("robust [95 %]", "steps shortened", "queries/image", "time")
