"""In notebooks: results show as escaped HTML tables, and progress bars are shown."""

import builtins
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console
from rich.table import Table

from attacks import pgd
from envs.datasets import load_dataset
from eval.audit import audit
from eval.core.formatting import html_tables
from eval.core.progress import is_live
from eval.core.threats import Threat
from eval.robustness.suite import evaluate
from tests.eval.test_attack import nearest_mean
from tests.support.audit_budgets import TINY

NAME = "<b>model & co</b>"


def images(n=12):
    data = load_dataset("digits", "test").take(torch.arange(n))
    return data.images.float() / 255, data.labels


def words(html):
    """Every cell's text, parsed as XML: what is not escaped would be an element or an error."""
    root = ElementTree.fromstring(f"<div>{html}</div>")
    tags = {"div", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert {element.tag for element in root.iter()} <= tags
    return [element.text for element in root.iter() if element.text]


def test_tables_become_escaped_html():
    table = Table(title="a < b")
    table.add_column("x & y")
    table.add_column("z")
    table.add_row("<script>", "2")
    table.add_row("3", '"4"')
    assert words(html_tables([table])) == ["a < b", "x & y", "z", "<script>", "2", "3", '"4"']


def test_results_show_their_numbers():
    x, y = images()
    threat = Threat("L2", 0.5)
    report = evaluate(nearest_mean(), x, y, names=("fgsm", "pgd"), threats=[threat], name=NAME)
    shown = words(report._repr_html_())
    assert any(NAME in word for word in shown)
    assert {"fgsm", "pgd", "worst case per image"} <= set(shown)
    result = report.results[threat]["pgd"]
    accuracy = f"{100 * result.robust_accuracy:.1f} %"
    assert any(word.startswith(accuracy) for word in words(result._repr_html_()))
    found = pgd(nearest_mean(), x, y, norm="L2", eps=0.5)
    assert f"{100 * found.robust_accuracy:.1f} %" in words(found._repr_html_())
    assert f"robust accuracy: {100 * found.robust_accuracy:.1f} %" in repr(found)
    assert "tensor" not in repr(found)


@pytest.mark.slow
def test_audits_show_verdict_and_evidence():
    report = audit(nearest_mean(), *images(), norm="L2", eps=0.5, budget=TINY)
    shown = words(report._repr_html_())
    assert any(report.headline in word for word in shown)
    assert {outcome.name for outcome in report.attacks} <= set(shown)


def test_bars_are_shown_in_notebooks_and_not_in_files(monkeypatch):
    assert not is_live(Console(stderr=True))  # pytest catches standard error
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    assert is_live(Console(stderr=True))
