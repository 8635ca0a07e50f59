"""How numbers are written in tables: percentages with intervals, shares, counts and times."""

import functools
from collections.abc import Iterable
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from eval.core.stats import Interval

_ANY_WIDTH = 10_000  # columns, more than any table has


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
    """Return a count in at most four digits: ``950``, ``12.3k``, ``4.56M``."""
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
        needed = Console(width=_ANY_WIDTH).measure(table).maximum
        console = Console(file=console.file, width=max(console.width, needed))
    title, table.title = table.title, None  # rich would wrap it to the width of the table
    console.print(title, style="bold", highlight=False, soft_wrap=True)
    console.print(table)


@functools.cache
def templates(package: str, **options: bool) -> Environment:
    """Return the templates of a package, which write numbers as tables do; options as of `jinja2.Environment`."""
    style: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, **options}
    environment = Environment(loader=PackageLoader(package), undefined=StrictUndefined, **style)
    environment.filters |= {"percent": percent, "duration": duration}
    return environment


def html_tables(tables: Iterable[Table]) -> str:
    """Return tables of plain text as HTML for notebooks, everything escaped."""
    pages = ""
    for table in tables:
        title = escape(str(table.title or ""))
        heads = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
        pages += f"<table><caption>{title}</caption><thead><tr>{heads}</tr></thead><tbody>"
        for row in zip(*(column.cells for column in table.columns), strict=True):
            pages += f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>"
        pages += "</tbody></table>"
    return pages
