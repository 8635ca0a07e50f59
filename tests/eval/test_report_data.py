"""The report's reading side: what is shown, and how it is written."""

import base64
import io
import math
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from eval.core.targets import load_samples, load_target
from eval.core.threats import Threat
from eval.report import command as report
from eval.report.cell_format import written
from eval.report.gallery import pack_gallery, pixels, read_gallery
from eval.report.overview import cost_table, verdict_table, verdict_text
from eval.report.safe_folder import Folder
from eval.robustness.suite import run_battery
from eval.study.results.record import Column, Measured, Table
from tests.support.report_files import (
    HOSTILE,
    REGIMES,
    gallery,
    png,
    small_study,
    study_directory,
    write_study,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return study_directory(tmp_path_factory.mktemp("study") / "whole")


@pytest.fixture
def small(tmp_path):
    return small_study(tmp_path)


def problems(path):
    return "\n".join(report.collect(Folder(path)).problems)


def test_the_page_has_every_part_and_needs_nothing_else(whole, capsys):
    assert report.main([str(whole)]) == 0
    page = (whole / "report.html").read_text()
    assert HOSTILE not in page
    assert "<img src=x" not in page
    for part in (
        "The second sentence.",
        "saturated logits",
        "Athalye et al. 2018",
        "62.5 %",
        "adversarial.steps",
    ):
        assert part in page
    assert page.count("<script>") == 1
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert not re.search(r"https?:|@import|url\(", page)
    printed = capsys.readouterr()
    assert "digits · small · RL-adv · seed 1: failed: out of memory" in printed.err
    assert "report.html" in printed.out


def test_verdicts_and_costs_are_per_regime(whole):
    models = report.collect(Folder(whole)).models
    table = verdict_table(models)
    assert len(table.rows) == 2 * len(REGIMES)
    sl = next(row for row in table.rows if row["regime"] == "SL")
    assert (sl["verdict"], sl["seeds"]) == ("sound", 2)
    assert sl["robust"].value == pytest.approx(0.275)
    # Student's t with one degree of freedom: half width 12.706 * sd / sqrt(2), cut at 0
    assert sl["robust"].low == 0
    assert sl["robust"].high == pytest.approx(0.275 + 12.7062 * 0.025, abs=1e-4)
    single = next(row for row in table.rows if row["regime"] == "RL-adv")
    assert (single["robust"].low, single["robust"].high, single["robust"].n) == (0.14, 0.4, 40)
    cost = cost_table(models).rows[0]
    assert (cost["images"], cost["training"], cost["passes"]) == (120_000, 44, 2 * 2 * 1500)


def test_mixed_verdicts_are_counted():
    assert verdict_text(["sound", "sound"]) == "sound"
    assert verdict_text(["sound", "masked", "sound"]) == "masked 1 of 3, sound 2 of 3"


def test_values_are_written_by_their_kind():
    columns = (Column("a", "a", "percent"), Column("b", "b", "interval"), Column("c", "c", "integer"))
    rows = (
        {"a": Measured(0.268, 0.2, 0.3, 50), "b": Measured(0.3, -0.1, 0.5), "c": 12345.0},
        {"a": -0.0, "b": None, "c": "no"},
    )
    cells = written(Table("t", "t", "", columns, rows))
    assert [cell.text for cell in cells[0]] == ["26.8 %", "-10.0 – 50.0", "12,345"]
    assert [cell.bounds for cell in cells[0]] == ["20.0 – 30.0", "", ""]
    assert (cells[0][0].bar.start, cells[0][0].bar.width, cells[0][0].bar.point) == (20, 10, 26.8)
    assert (cells[0][1].bar.start, cells[0][1].bar.width, cells[0][1].bar.point) == (0, 50, 30)
    assert [cell.text for cell in cells[1]] == ["0.0 %", "–", "no"]
    assert cells[1][1].sort == ""


def test_a_study_half_done_says_what_is_missing(tmp_path):
    cell = {"dataset": "digits", "network": "small", "regime": "RL", "seed": 0}
    cells = [cell | {"status": "missing"}, cell | {"seed": 1, "status": "finished", "run": "cells/x/run"}]
    figure = {"id": "f", "title": "F", "file": "figures/none.png"}
    write_study(tmp_path, {"format": 1, "cells": cells, "figures": [figure]})
    assert report.main([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for line in (
        "seed 0: missing",
        "no tables yet",
        "no conclusions yet",
        "figures/none.png",
        "cells/x/run/config.json",
    ):
        assert line in page
    assert page.count("No audit was run") == 1
    write_study(tmp_path, {"format": 1})
    assert "no cells yet" in problems(tmp_path)


def test_what_does_not_fit_is_named(small):
    found = report.collect(Folder(small), characters=2_000)
    assert "the page would grow too large" in "\n".join(found.problems)
    assert sum(len(plot.picture.uri) for plot in found.plots) <= 2_000


@pytest.mark.parametrize("channels", [1, 3])
def test_adversarial_images_are_shown_pixel_by_pixel(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    picture = pixels(image)
    content = base64.b64decode(picture.uri.partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(content)))
    assert (picture.width, picture.height) == (7, 5)
    np.testing.assert_array_equal(shown.reshape(5, 7, channels), image.transpose(1, 2, 0))
    gallery(tmp_path / "g.npz", channels=channels, pairs=False)
    examples = read_gallery(Folder(tmp_path), "g.npz", ("a", "b"), most=4)
    assert [(item.label, item.before, item.after) for item in examples[:3]] == [
        ("a", None, "b"),
        ("b", None, "2"),
        ("2", None, "a"),
    ]
    assert len(examples) == 4
    assert all(item.fooled for item in examples)


def test_a_gallery_survives_packing(tmp_path):
    clean = torch.rand(3, 3, 4, 4)
    attacked = (clean + 0.1).clamp(0, 1)
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    packed = pack_gallery(clean, attacked, torch.tensor([0, 0, 1]), logits, logits.flip(1))
    (tmp_path / "g.npz").write_bytes(packed)
    first = read_gallery(Folder(tmp_path), "g.npz", ("cat", "dog"))[0]
    assert (first.label, first.before, first.after) == ("cat", "cat", "dog")
    assert first.sure_after == pytest.approx(1 / (1 + math.exp(-2)))
    assert first.clean.uri == pixels((clean[0] * 255).round().byte().numpy()).uri


@pytest.mark.slow
def test_a_plain_run_has_a_report_of_its_own(digits_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    target = load_target(str(run))
    samples = load_samples(target, n=24)
    run_battery(
        target,
        samples,
        ("fgsm", "pgd", "pgd-cleverhans"),
        [Threat("L2", 1.5)],
        results_dir=run / "results",
    )
    (run / "results" / "mechanism").mkdir()
    (run / "results" / "mechanism" / "landscape.png").write_bytes(png())
    gallery(run / "results" / "mechanism" / "gallery.npz")
    assert report.main([str(run), "--out", str(tmp_path / "run.html")]) == 0
    page = (tmp_path / "run.html").read_text()
    for part in (
        "resist every one of 3 attacks",
        "the floor shortened",
        "Worst case per image",
        "pgd-100",
        "cleverhans",
        "Loss landscape of one image",
        'class="blend"',
    ):
        assert part in page
    assert page.count("No audit was run") == 1
    assert "PGD with cleverhans" in page
    assert "error" not in capsys.readouterr().err
