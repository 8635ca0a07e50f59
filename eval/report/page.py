"""Rendering the page: one self-contained HTML file whose content security policy blocks all requests."""

import base64
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from eval.core.formatting import templates
from eval.report import cell_format
from eval.report.cell_format import flatten
from eval.report.model import Model, Plot
from eval.report.opening import Opening
from eval.report.overview import (
    by_group,
    cell_table,
    common_settings,
    cost_table,
    differing_settings,
    filled_columns,
    verdict_table,
)
from eval.study.results.record import StudyRecord


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        study: cells, tables, sentences.
        models: of the finished cells.
        opening: what the page begins with.
        plots: of the study as a whole.
        problems: what is missing or could not be read, one line each.
    """

    study: StudyRecord
    models: Sequence[Model]
    opening: Opening
    plots: Sequence[Plot] = ()
    problems: Sequence[str] = ()


def render(report: Report) -> str:
    """Return the page as HTML; everything that comes from files is escaped."""
    numbers = itertools.count(1)
    template = _environment().get_template("page.html.j2")
    return template.render(_context(report), next_id=lambda: f"e{next(numbers)}")


def _environment() -> Environment:
    environment = templates("eval.report", autoescape=True)
    environment.globals |= {"written": cell_format.written, "is_number": cell_format.is_number}
    environment.filters |= {"number": cell_format.number, "plural": plural, "moment": moment}
    return environment


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
    style, script = _asset("page.css"), _asset("page.js")
    models = report.models
    tables = [filled_columns(table) for table in report.study.tables]
    costs = next((table for table in tables if table.id == "cost"), None) or cost_table(models)
    verdicts = verdict_table(models) or next((table for table in tables if table.id == "audit"), None)
    first = [members[0] for members in by_group(models).values()]
    return {
        "study": report.study,
        "facts": list(_facts(report.study)),
        "opening": report.opening,
        "verdicts": verdicts,
        "costs": costs,
        "tables": [table for table in tables if table not in (costs, verdicts)],
        "problems": report.problems,
        "plots": report.plots,
        "audited": list(by_group(model for model in models if model.audits).values()),
        "attacked": [model for model in models if model.examples],
        "pictured": [model for model in first if model.plots],
        "settings": common_settings(models),
        "differences": differing_settings(models),
        "cells": cell_table(report.study.cells),
        "grid": flatten(report.study.config),
        "versions": flatten(report.study.versions),
        "machine": flatten(report.study.machine),
        "style": Markup(style),
        "script": Markup(script),
        "policy": _policy(style, script),
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


def _asset(name: str) -> str:
    return files("eval.report").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: this style, this script, pictures of this page, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
