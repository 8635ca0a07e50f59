"""The report of a directory that means harm: one line or a listed problem, and nothing outside it is read."""

import contextlib
import io
import json
import os
import re
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import InputError
from eval.report import command as report
from eval.report.gallery import read_gallery
from eval.report.page import render
from eval.report.safe_folder import Folder
from eval.study.results.record import STUDY_FILE, StudyRecord
from tests.support.report_files import (
    audit,
    gallery,
    png,
    run_directory,
    small_study,
    study_json,
    write_study,
)


@pytest.fixture
def small(tmp_path):
    return small_study(tmp_path)


def problems(path):
    return "\n".join(report.collect(Folder(path)).problems)


STUDIES = {
    "not json": r"study\.json cannot be used \(JSON is malformed",
    "[1]": r"Expected `object`, got `array`",
    "{}": r"missing required field `format`",
    '{"format": 2}': r"has format 2, expected 1: another version wrote it",
    '{"format": 2, "versions": {"labelbandit": "9.1"}}': r"has format 2, expected 1: labelbandit 9\.1 wrote it",
    '{"format": true}': r"has format True, expected 1",
    '{"format": 1, "cells": 3}': r"Expected `array`, got `int` - at `\$\.cells`",
    '{"format": 1, "cells": ["x"]}': r"Expected `object`, got `str` - at `\$\.cells\[0\]`",
    '{"format": 1, "cells": [{"status": "done"}]}': r"Invalid enum value 'done' - at `\$\.cells\[0\]\.status`",
    '{"format": 1, "cells": [{"run": ["x"]}]}': r"Expected `str`, got `array` - at `\$\.cells\[0\]\.run`",
    '{"format": 1, "name": {"a": 1}}': r"Expected `str`, got `object` - at `\$\.name`",
    '{"format": 1, "reading": [5]}': r"Expected `str`, got `int` - at `\$\.reading\[0\]`",
    '{"format": 1, "versions": []}': r"Expected `object`, got `array` - at `\$\.versions`",
    '{"format": 1, "x": NaN}': r"JSON is malformed",
    '{"format": 1, "x": -Infinity}': r"JSON is malformed",
    '{"format": 1, "x": ' + "[" * 5000 + "]" * 5000 + "}": r"maximum recursion depth",
    '{"format": 1, "config": {"x": ' + "9" * 5000 + "}}": r"out of range",
    json.dumps({"format": 1, "name": "n" * 30_000}): r"Expected `str` of length <= 20000 - at `\$\.name`",
    json.dumps({"format": 1, "cells": [{}] * 5001}): r"Expected `array` of length <= 5000",
}
ROWS = {
    "kind": ([{"key": "a", "kind": "html"}], [], r"Invalid enum value 'html'"),
    "twice": ([{"key": "a"}, {"key": "a"}], [], r"two columns have one key"),
    "infinite": ([{"key": "a", "kind": "number"}], [{"a": 10**400}], r"out of range"),
    "true": (
        [{"key": "a", "kind": "percent"}],
        [{"a": True}],
        r"got `bool` - at `\$\.tables\[0\]\.rows\[0\]",
    ),
    "list": ([{"key": "a", "kind": "number"}], [{"a": [1]}], r"got `array` - at `\$\.tables\[0\]\.rows\[0\]"),
    "order": (
        [{"key": "a", "kind": "interval"}],
        [{"a": {"value": 1, "low": 2, "high": 1}}],
        r"low is 2; expected at most 1",
    ),
    "rows": ([{"key": "a"}], [7], r"Expected `object`, got `int` - at `\$\.tables\[0\]\.rows\[0\]`"),
    "many": ([{"key": str(k)} for k in range(200)], [{}] * 2000, r"400000 entries; at most 200000"),
}


def one_line_error(path, capsys):
    assert report.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert len(error) < 400
    assert not (path / "report.html").exists()
    return error


@pytest.mark.parametrize("content", STUDIES)
def test_a_damaged_study_ends_with_one_line(tmp_path, capsys, content):
    write_study(tmp_path, content)
    assert re.search(STUDIES[content], one_line_error(tmp_path, capsys))


@pytest.mark.parametrize("case", ROWS)
def test_a_damaged_table_ends_with_one_line(tmp_path, capsys, case):
    columns, rows, expected = ROWS[case]
    write_study(tmp_path, {"format": 1, "tables": [{"id": "t", "columns": columns, "rows": rows}]})
    assert re.search(expected, one_line_error(tmp_path, capsys))


def test_wrong_directories_and_options_end_with_one_line(tmp_path, capsys):
    assert "has neither study.json nor config.json" in one_line_error(tmp_path, capsys)
    assert "no directory at" in one_line_error(tmp_path / "none", capsys)
    write_study(tmp_path, {"format": 1})
    for option, expected in {
        "--images -1": "--images is -1; expected 0 or more",
        "--megabytes 9999": "--megabytes is 9999; expected 0 to 500",
        f"--out {tmp_path}": "expected a file name in an existing directory",
        f"--out {tmp_path}/no/r.html": "expected a file name in an existing directory",
    }.items():
        assert report.main([str(tmp_path), *option.split()]) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", ["../outside", "/etc", "cells/../../outside", "a\\b", "x\0y", "cells//..//.."]
)
def test_paths_that_lead_out_are_not_followed(tmp_path, path):
    inner = tmp_path / "inner"
    inner.mkdir()
    run_directory(tmp_path / "outside", "SECRET")
    (tmp_path / "outside" / "f.png").write_bytes(png())
    study = study_json(1)
    study["cells"] = [study["cells"][0] | {"run": path}]
    study["figures"] = [{"id": "f", "title": "f", "file": f"{path}/f.png"}]
    write_study(inner, study)
    found = report.collect(Folder(inner))
    page = render(found)
    assert "SECRET" not in page
    assert "data:image" not in page
    assert not found.models[0].audits
    assert len([line for line in found.problems if "leads out" in line or "not usable" in line]) == 2


@pytest.mark.parametrize(
    "target", ["figures/transfer.png", "cells/sl0/run", "cells", "cells/sl0/run/config.json"]
)
def test_links_are_not_followed(small, tmp_path_factory, target):
    outside = tmp_path_factory.mktemp("outside") / "moved"
    (small / target).rename(outside)
    (small / target).symlink_to(outside)
    assert target in problems(small)


def test_links_to_audits_and_galleries_are_not_followed(small):
    results = small / "cells" / "sl0" / "run" / "results"
    for name in os.listdir(results):
        if name.endswith(".json"):
            (results / name).rename(small / name)
            (results / name).symlink_to(small / name)
    images = small / "cells" / "sl0" / "gallery.npz"
    images.rename(small / "g.npz")
    images.symlink_to(small / "g.npz")
    model = report.collect(Folder(small)).models[0]
    assert model.audits == []
    assert model.examples == []


def test_a_pipe_does_not_block(small):
    (small / "figures" / "cost.png").unlink()
    os.mkfifo(small / "figures" / "cost.png")
    assert "cost.png is no regular file" in problems(small)


def test_damaged_pictures_and_audits_are_named_and_the_rest_is_shown(small):
    (small / "figures" / "transfer.png").write_bytes(b"<svg onload=alert(1)>")
    (small / "figures" / "cost.png").write_bytes(png()[:60])
    results = small / "cells" / "sl0" / "run" / "results"
    (results / "audit-a.json").write_text("{")
    (results / "audit-b.json").write_text(json.dumps(audit("SL", "Linf", 0.1) | {"verdict": "perfect"}))
    (results / "audit-c.json").write_text(json.dumps(audit("SL", "Linf", 0.1) | {"robust_accuracy": 1.5}))
    (small / "cells" / "sl0" / "run" / "summary.json").write_text('{"seconds": "long"}')
    found = problems(small)
    for line in (
        "transfer.png is no PNG",
        "cost.png is damaged",
        "audit-a.json cannot be used",
        "Invalid enum value 'perfect'",
        "Expected `float` <= 1.0 - at `$.robust_accuracy`",
        "Expected `float | null`, got `str` - at `$.seconds`",
    ):
        assert line in found
    assert len(report.collect(Folder(small)).models[0].audits) == 2


def test_a_huge_picture_is_not_decoded(small):
    header = bytearray(png())
    header[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height
    (small / "figures" / "cost.png").write_bytes(header)
    assert re.search(r"cost\.png (is damaged|has 100000 x 100000 pixels)", problems(small))


def npz(path, **arrays):
    gallery(path)
    with np.load(path) as found:
        np.savez(path, **({name: found[name] for name in found.files} | arrays))


GALLERIES = {
    "pickle": ({"labels": np.array([print] * 6, dtype=object)}, r"labels is object"),
    "types": ({"clean": np.zeros((6, 1, 8, 8))}, r"clean is float64 .*expected uint8"),
    "shapes": ({"clean": np.zeros((5, 1, 8, 8), np.uint8)}, r"clean is uint8 \(5, 1, 8, 8\), adversarial"),
    "channels": (
        {name: np.zeros((6, 2, 8, 8), np.uint8) for name in ("clean", "adversarial")},
        r"expected uint8 \(n, 1 or 3, H, W\)",
    ),
    "labels": ({"labels": np.zeros(4, int)}, r"labels are int64 \(4,\)"),
    "predicted": ({"predicted": np.zeros((6, 3), int)}, r"predicted has shape \(6, 3\)"),
    "nan": ({"confidences": np.full((6, 2), np.nan)}, r"a confidence is not within 0 to 1"),
}


@pytest.mark.parametrize("case", GALLERIES)
def test_damaged_galleries_are_refused(tmp_path, case):
    arrays, expected = GALLERIES[case]
    npz(tmp_path / "g.npz", **arrays)
    with pytest.raises(InputError, match=expected):
        read_gallery(Folder(tmp_path), "g.npz")


def test_archives_that_lie_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    gallery(tmp_path / "g.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "g.npz").read_bytes()[:-40])
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("clean.npy", b"\x93NUMPY\x01\x00")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1, 28, 28)}
    )
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("clean.npy", header.getvalue())
    for name in "abcd":
        with pytest.raises(InputError, match=r"is no archive of arrays|expected a whole array|lacks"):
            read_gallery(Folder(tmp_path), f"{name}.npz")


def test_the_deepest_configuration_is_cut(small):
    study = json.loads((small / "study.json").read_text())
    inner = study["config"]
    for _ in range(300):
        inner["deeper"] = {"deeper": {}}
        inner = inner["deeper"]
    write_study(small, study)
    assert Folder(small).record(STUDY_FILE, StudyRecord).config
    assert "…" in render(report.collect(Folder(small)))


def test_a_study_of_many_conclusions_is_read(small):
    study = json.loads((small / "study.json").read_text())
    write_study(small, study | {"reading": [f"conclusion {number}" for number in range(1_000)]})
    assert len(Folder(small).record(STUDY_FILE, StudyRecord).claims) == 1_000


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "/etc/passwd", "\x1b[2J", "\ud800", "<script>", "run\0", 10**400, -1, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_the_description_says_the_answer_is_a_page_or_one_line(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    place = study = study_json(1)
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[key] = data.draw(JUNK)
    write_study(path, study)
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
        status = report.main([str(path)])
    assert status in (0, 2)
    assert error.getvalue().replace("\n", "").isprintable()
    if status == 2:
        assert error.getvalue().count("\n") == 1
    else:
        page = (path / "report.html").read_text()
        assert page.count("<script>") == 1
        assert "<img src=x" not in page
    shutil.rmtree(path)
