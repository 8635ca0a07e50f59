"""A model that answers NaN for one image of sixty: every command ends with a result, and every file is JSON."""

import json

import pytest
import torch

from envs.errors import InputError
from envs.files import read_json, write_json
from eval.attack.command import main as attack
from eval.attack.results import read_results
from eval.audit import main as audit
from eval.export.formats import compare
from eval.mechanism.command import main as mechanism
from eval.robustness.command import main as robustness
from eval.transfer.command import main as transfer
from tests.eval.test_attack import MODEL
from tests.support.audit_budgets import TINY
from tests.support.nan_models import ONE_NAN, POWER, N

pytestmark = pytest.mark.usefixtures("pictures_undrawn")

THREAT = ("--norm", "L2", "--eps", "0.2")  # landscapes of 0.6 lie within 1 of the image
DATA = ("--dataset", "digits", "--n", str(N))
SMALL = ("--resolution", "5", "--average-images", "2", "--average-resolution", "4", "--plane-resolution", "4")
COMMANDS = {
    "attack": (attack, (ONE_NAN, *DATA, *THREAT, "--steps", "5", "--no-progress")),
    "robustness": (robustness, (ONE_NAN, *DATA, *THREAT, "--attacks", "fgsm", "apgd", "--no-progress")),
    "transfer": (transfer, (ONE_NAN, MODEL, *DATA, *THREAT, "--steps", "3")),
    "mechanism": (
        mechanism,
        (ONE_NAN, MODEL, *DATA, *THREAT, "--steps", "3", "--no-progress", *SMALL),
    ),
    "audit": (audit, (ONE_NAN, *DATA, *THREAT)),
}


def strict(path):
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{path}: {word}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_a_result(name, tmp_path, monkeypatch, capsys):
    main, arguments = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eval.audit.run.QUICK", TINY)
    assert main(list(arguments)) == 0
    files = list(tmp_path.rglob("*.json"))
    contents = [strict(path) for path in files]
    assert files
    output = capsys.readouterr()
    if name in ("attack", "robustness"):
        assert "NaN on 1 of 60 images" in output.err
        assert not read_results(next(path for path in files if "L2" in path.name)).robust[0]
    if name == "mechanism":
        (found,) = contents
        assert found["models"][0]["landscape"]["single"]["cross_entropy"] == {"min": None, "max": None}
        assert found["models"][0]["static"]["margin"]["n"] == N - 1
        assert found["planes"][0][1]["answered"] == 1  # the sound model on the plane of the other
        assert "no finite answer on 100.0 %" in output.err


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--clip-planes",)])
def test_layers_of_powers_have_no_answer_outside_the_box(more, tmp_path, capsys):
    out = tmp_path / "m"
    _, arguments = COMMANDS["mechanism"]
    assert mechanism([POWER, *arguments[2:], "--out", str(out), *more]) == 0
    share = strict(out / "mechanism.json")["models"][0]["landscape"]["single"]["answered"]
    assert share == 1 if more else share < 1
    assert ("--clip-planes keeps" in capsys.readouterr().err) == (not more)


def test_an_export_answers_nan_where_its_model_does():
    images = torch.tensor([[0.1, 0.2], [torch.nan, 0.5], [0.3, 0.1]])
    assert compare(lambda x: x, lambda x: x + 1e-5, images, "copy").difference == pytest.approx(
        1e-5, rel=1e-2
    )
    for other in (lambda x: x.nan_to_num(0), lambda x: x.masked_fill(x == x[:1], torch.nan)):
        with pytest.raises(InputError, match="differ by inf"):
            compare(lambda x: x, other, images, "another")


def test_json_has_null_for_what_is_no_number(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1.5, float("nan")], "b": {"c": (float("inf"), "NaN", None, 3)}})
    assert read_json(path) == {"a": [1.5, None], "b": {"c": [None, "NaN", None, 3]}}
    assert strict(path)
