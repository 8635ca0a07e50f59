"""Rendering the page: one self-contained HTML file whose content security policy blocks all requests."""

import base64
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from eval.core.formatting import templates
from eval.report import cell_format, overview
from eval.report.cell_format import flatten
from eval.report.model import Model, Plot
from eval.report.opening import Opening
from eval.study.results.record import StudyRecord


class Report(NamedTuple):
    """All that the page shows: the study, the models of its finished cells, and what the page begins with.

    ``plots`` are those of the study as a whole; ``problems``: what is missing or could not be read, one line each.
    """

    study: StudyRecord
    models: Sequence[Model]
    opening: Opening
    plots: Sequence[Plot] = ()
    problems: Sequence[str] = ()


def render(report: Report) -> str:
    """Return the page as HTML; everything that comes from files is escaped."""
    numbers = itertools.count(1)
    environment = templates("eval.report", autoescape=True)
    environment.globals["written"] = cell_format.written
    environment.filters |= {"number": cell_format.number, "plural": plural, "moment": moment}
    template = environment.get_template("page.html.j2")
    return template.render(_context(report), next_id=lambda: f"e{next(numbers)}")


def moment(text: str) -> str:
    """Return an ISO time to the minute; other texts as they are."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text


def plural(number: int, noun: str) -> str:
    """Return ``1 model`` or ``3 models``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _context(report: Report) -> dict[str, Any]:
    folder = files("eval.report") / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # The Content-Security-Policy: this style, this script, pictures of this page, and nothing else.
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    models, study = report.models, report.study
    tables = [overview.filled_columns(table) for table in study.tables]
    own = {table.id: table for table in reversed(tables)}
    costs = own.get("cost") or overview.cost_table(models)
    verdicts = overview.verdict_table(models) or own.get("audit")
    groups = overview.by_group(models).values()
    return {
        **report._asdict(),
        "facts": list(_facts(study)),
        "verdicts": verdicts,
        "costs": costs,
        "tables": [table for table in tables if table not in (costs, verdicts)],
        "audited": list(overview.by_group(model for model in models if model.audits).values()),
        "attacked": [model for model in models if model.examples],
        "pictured": [members[0] for members in groups if members[0].plots],
        "settings": overview.common_settings(models),
        "differences": overview.differing_settings(models),
        "cells": overview.cell_table(study.cells),
        "grid": flatten(study.config),
        "versions": flatten(study.versions),
        "machine": flatten(study.machine),
        "style": Markup(style),
        "script": Markup(script),
        "policy": policy,
    }


def _facts(study: StudyRecord) -> Iterator[str]:
    """Yield the line under the title: what was studied, and how much of it is done."""
    for k, noun in enumerate(("data set", "network", "regime")):
        names = list(dict.fromkeys(cell.group[k] for cell in study.cells if cell.group[k]))
        if names:
            yield ", ".join(names) if len(names) < 4 else plural(len(names), noun)
    seeds = {cell.seed for cell in study.cells if cell.seed not in (None, "")}
    if seeds:
        yield plural(len(seeds), "seed")
    if study.cells:
        done = sum(cell.status == "finished" for cell in study.cells)
        yield f"{done} of {plural(len(study.cells), 'model')} finished"
