"""A small study from end to end: files, reuse, resumption, failures, lock."""

import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from agents.models.classifier_files import load_classifier
from eval.attack.results import read_results
from eval.core.records import read_record
from eval.report.opening import study_gaps
from eval.study.command import main
from eval.study.plan.cells import CellFolder, cells_of
from eval.study.plan.config import PRESETS, preset
from eval.study.results.cell_results import read_cells
from eval.study.results.record import StudyRecord
from eval.study.results.writer import locked, write_study
from eval.study.run.engines import InProcess, carry_out
from eval.trajectory.measure import ATTACKS
from tests.support.audit_budgets import TINY
from tests.support.study_toys import shrunk, study, tiny

pytestmark = pytest.mark.usefixtures("pictures_undrawn")

ROOT = Path(__file__).parents[2]


def finish(item, engine=None):
    with locked(item.directory):
        counts = carry_out(item, engine or InProcess(0), lambda line: None)
        write_study(item)
    return counts


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    item = study(
        tiny(seeds=[0, 1]),
        tmp_path_factory.mktemp("study"),
    )
    assert finish(item) == {"finished": 4, "failed": 0, "missing": 0}
    return item


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_named_study_runs(name, tmp_path):
    item = study(shrunk(preset(name), tmp_path), tmp_path / "study")
    assert finish(item) == {"finished": len(item.grid.regimes), "failed": 0, "missing": 0}
    (clean,) = (table for table in contents(item.directory)["tables"] if table["id"] == "clean")
    assert [row["regime"] for row in clean["rows"]] == [regime.name for regime in item.grid.regimes]


def contents(directory):
    return json.loads((directory / "study.json").read_text())


@pytest.mark.slow
def test_the_directory_is_what_readers_expect(done):
    found = contents(done.directory)
    assert found["format"] == 1
    assert [cell["status"] for cell in found["cells"]] == ["finished"] * 4
    for cell in found["cells"]:
        run = done.directory / cell["run"]
        assert load_classifier(run).num_classes == 10
    ids = [table["id"] for table in found["tables"]]
    assert ids == ["clean", "pgd", "autoattack", "transfer", "tests", "cost", "equal_accuracy"]
    for table in found["tables"]:
        keys = {column["key"] for column in table["columns"]}
        assert table["rows"]
        assert all(keys & row.keys() for row in table["rows"])
        for file in table["files"].values():
            assert (done.directory / file).stat().st_size > 0
    for figure in found["figures"]:
        assert (done.directory / figure["file"]).read_bytes().startswith(b"\x89PNG")
        assert figure["alt"]
    assert any("RL resists better than SL" in sentence for sentence in found["reading"])


@pytest.mark.slow
def test_the_report_opens_with_the_numbers_of_the_tables(done):
    record = read_record(done.directory / "study.json", StudyRecord)
    assert [table.id for table in record.tables] == [
        table["id"] for table in contents(done.directory)["tables"]
    ]
    gaps = study_gaps(record)
    assert [(gap.regime, gap.threat) for gap in gaps] == [("SL", "L2 0.5"), ("RL", "L2 0.5")]
    for gap, pgd, worst in zip(gaps, record.rows("pgd"), record.rows("autoattack"), strict=True):
        assert (gap.reported, gap.left) == (pgd["pgd-cleverhans"].value, worst["worst"])
        assert gap.size >= 0


def test_numbers_are_those_of_the_result_files(done):
    table = next(table for table in contents(done.directory)["tables"] if table["id"] == "pgd")
    row = next(row for row in table["rows"] if row["regime"] == "RL")
    folders = [CellFolder.open(done.directory, cell.hash) for cell in done.cells if cell.regime == "RL"]
    files = [
        folder.run.results_dir / item["file"]
        for folder in folders
        for item in folder.steps["attacks"]["files"]
        if item["name"] == "pgd-cleverhans"
    ]
    assert len(files) == 2
    results = [read_results(path) for path in files]
    assert row["pgd-cleverhans"]["value"] == pytest.approx(
        np.mean([item.robust_accuracy for item in results])
    )
    assert row["pgd-cleverhans"]["n"] == 24
    assert row["pgd-cleverhans_shortened"] == pytest.approx(np.mean([item.shortened for item in results]))


def test_the_gallery_has_no_pickles(done):
    path = done.directory / "cells" / done.cells[0].hash / "gallery.npz"
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["clean"].shape == arrays["adversarial"].shape == (4, 1, 8, 8)
        assert arrays["clean"].dtype == arrays["adversarial"].dtype == np.uint8
        assert arrays["predicted"].shape == arrays["confidences"].shape == (4, 2)
        length = np.linalg.norm(
            (arrays["adversarial"] / 255.0 - arrays["clean"] / 255.0).reshape(4, -1), axis=1
        )
        assert (length <= 0.5 + 8 / 255).all()  # rounding moves 64 pixels by half a step at most
    assert zipfile.ZipFile(path).testzip() is None


def test_transfer_matrix_counts_models(done):
    observations = {item.cell.id: item for item in read_cells(done)}
    item = observations["digits-mlp-SL-s0"]
    for source in done.cells:
        shown = item.shown(source, "paper", done.grid.threats[0])
        peer = source.seed == 0 or source.regime == "SL"
        assert (shown is not None) == peer
    own = item.shown(done.cells[0], "strong", done.grid.threats[0])
    assert own.mean() < item.clean.mean()  # attacked by itself


@pytest.mark.slow
def test_what_is_finished_is_reused_and_new_questions_are_asked_of_old_models(done):
    cell = done.cells[0]
    folder = CellFolder.open(done.directory, cell.hash)
    weights = folder.run.model_path.stat().st_mtime_ns
    records = [path.stat().st_mtime_ns for path in folder.run.results_dir.glob("pgd*.json")]
    more = study(tiny(seeds=[0], images=24, threats=["L2 0.5", "Linf 0.1"]), done.directory)
    assert finish(more)["finished"] == 2
    assert folder.run.model_path.stat().st_mtime_ns == weights
    after = [path.stat().st_mtime_ns for path in folder.run.results_dir.glob("pgd*.json")]
    assert set(records) < set(after)
    assert len(after) == 4
    assert finish(done)["finished"] == 4


@pytest.mark.slow
def test_indicators_and_verdicts(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.audit.run.QUICK", TINY)
    item = study(
        tiny(
            regimes={"EPG": {"algo": "epg"}},
            mechanism={"images": 6, "steps": 3, "resolution": 5},
            audit={"mode": "quick", "images": 10},
        ),
        tmp_path,
    )
    assert finish(item)["finished"] == 1
    found = contents(tmp_path)
    tables = {table["id"]: table["rows"] for table in found["tables"]}
    results = tmp_path / found["cells"][0]["run"] / "results"
    audit = json.loads((results / "audit-L2-0.5-quick.json").read_text())
    assert tables["audit"][0]["verdict"] == audit["headline"]
    assert tables["audit"][0]["robust"]["n"] == 10
    figures = json.loads((results / "mechanism" / "mechanism.json").read_text())["models"][0]
    assert tables["mechanism"][0]["margin"]["value"] == figures["static"]["margin"]["median"]
    assert tables["mechanism"][0]["entropy"]["value"] == figures["entropy"]["clean"]["all"]["mean"]
    assert any(sentence.startswith("Audit of EPG") for sentence in found["reading"])


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_rest(tmp_path):
    item = study(
        tiny(networks=["tests.support.study_toys:broken", "mlp"], regimes={"SL": {"algo": "supervised"}}),
        tmp_path,
    )
    assert finish(item) == {"finished": 1, "failed": 1, "missing": 0}
    failed, fine = contents(tmp_path)["cells"]
    assert failed["status"] == "failed"
    assert "no such luck" in failed["error"]
    assert fine["status"] == "finished"
    assert "no such luck" in (tmp_path / "cells" / failed["hash"] / "log.txt").read_text()


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys):
    file = tmp_path / "own.toml"
    file.write_text(
        'datasets = ["digits"]\nnetworks = ["mlp"]\nthreats = ["L2 0.5"]\nattacks = ["fgsm"]\nimages = 8\n'
        "gallery = 0\ntransfer = {crafts = []}\nmechanism = {images = 0}\naudit = {mode = 'none'}\n"
        '[train]\ntotal_images = 200\nbatch_size = 50\n[regimes.SL]\nalgo = "supervised"\n'
    )
    out = tmp_path / "out"
    assert main([str(file), "--out", str(out), "--dry-run"]) == 0
    assert "left: about" in capsys.readouterr().out
    assert not out.exists()
    assert main([str(file), "--out", str(out)]) == 0
    assert "1 finished, 0 failed, 0 missing" in capsys.readouterr().out
    with locked(out):
        assert main([str(file), "--out", str(out)]) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert main(["digit"]) == 2
    assert "Did you mean 'digits'?" in capsys.readouterr().err
    assert main([str(file), "--out", str(out), "--shards", "0"]) == 2


@pytest.mark.slow
def test_control_c_leaves_a_study_that_goes_on(tmp_path):
    """Interrupted in a training, the study says how to go on, and ends with the weights of an undisturbed one."""
    file = tmp_path / "own.toml"
    file.write_text(
        'datasets = ["digits"]\nnetworks = ["mlp"]\nthreats = ["L2 0.5"]\nattacks = ["fgsm"]\nimages = 8\n'
        "gallery = 0\ntransfer = {crafts = []}\nmechanism = {images = 0}\naudit = {mode = 'none'}\n"
        '[train]\ntotal_images = 10000\nbatch_size = 50\neval_every = 1000\n[regimes.SL]\nalgo = "supervised"\n'
    )
    command = [sys.executable, "-m", "eval.study", str(file), "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut").glob("cells/*/run/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"go on with: python -m eval.study {file} --out {tmp_path / 'cut'}" in error
    assert contents(tmp_path / "cut")["cells"][0]["status"] == "missing"
    assert main([str(file), "--out", str(tmp_path / "cut")]) == 0
    assert main([str(file), "--out", str(tmp_path / "whole")]) == 0
    weights = [next(tmp_path.glob(f"{name}/cells/*/run/model.safetensors")) for name in ("cut", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_cells_of_the_command_are_those_of_the_grid(done):
    assert [cell.hash for cell in cells_of(done.grid)] == [cell.hash for cell in done.cells]


@pytest.mark.slow
def test_robustness_is_followed_through_training(tmp_path):
    plan = {"snapshots": 2, "images": 6}
    item = study(tiny(trajectory=plan, transfer={"crafts": []}, seeds=[0, 1]), tmp_path)
    assert finish(item)["finished"] == 4
    found = contents(tmp_path)
    (table,) = [table for table in found["tables"] if table["id"] == "trajectory"]
    assert [(row["regime"], row["images"]) for row in table["rows"]] == [("SL", 1_200), ("RL", 1_200)]
    for row in table["rows"]:
        assert row["clean"]["value"] >= row["left"]["value"]
        assert row["clean"]["n"] == 6
    (figure,) = [figure for figure in found["figures"] if figure["id"].startswith("trajectory")]
    assert (tmp_path / figure["file"]).is_file()
    (observation,) = [
        found for found in read_cells(item) if (found.cell.regime, found.cell.seed) == ("RL", 1)
    ]
    assert observation.trajectory.points[-1].attacks.keys() == set(ATTACKS)
