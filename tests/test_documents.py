"""What README and docs show works: Python blocks run, and every command line is one that the program accepts."""

import contextlib
import dataclasses
import importlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import tyro

from agents import load_classifier
from agents.config import TrainConfig
from agents.training.run import train
from envs import load_dataset
from tests.support.audit_budgets import TINY
from tests.support.data_files import image_tree, write_mnist

pytestmark = pytest.mark.usefixtures("pictures_undrawn")

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
COMMANDS = {
    "attacks": "eval.attack.options",
    "agents.train": "agents.train",
    "eval.distributed": "eval.robustness.distributed",
    **{
        f"eval.{name}": f"eval.{name}.options"
        for name in ("robustness", "mechanism", "study", "report", "export", "transfer", "trajectory")
    },
    "eval.audit": "eval.audit",
}


def test_programs_that_are_named_exist():
    """In pages, docstrings and messages: ``python -m`` is followed by a module, or a package that is a program."""
    sources = [
        path
        for package in ("envs", "agents", "attacks", "eval", "benchmarks", "tests")
        for path in (ROOT / package).rglob("*.py")
    ]
    for path in (*sources, ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for name in re.findall(
            r"python -m ((?:agents|attacks|eval|benchmarks)[a-z_.]*[a-z_])(?![\w\\])", path.read_text()
        ):
            place = ROOT / name.replace(".", "/")
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), f"{path}: {name}"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.S | re.M)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_what_pages_import_from_the_project_is_there(page):
    lines = "".join(blocks(page, "python")).splitlines()
    for line in lines:
        if re.match(r"from (envs|agents|attacks|eval)\b[\w.]* import \w", line):
            exec(line, {})


def command_lines():
    for page in PAGES:
        for block in blocks(page, "bash"):
            for name, value in re.findall(r'^(\w)="(.*)"$', block, flags=re.M):
                block = block.replace(f"${name} ", f"{value} ")
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "-m" in words and words[words.index("-m") + 1] in COMMANDS:
                    start = words.index("-m") + 1
                    end = words.index("&&", start) if "&&" in words[start:] else len(words)
                    yield pytest.param(
                        words[start], words[start + 1 : end], id=f"{page.stem}: {' '.join(words[start:end])}"
                    )


def door(command):
    module = importlib.import_module(COMMANDS[command])
    return module, module.run if command == "agents.train" else module.main


@pytest.mark.parametrize(("command", "arguments"), [*command_lines()])
def test_command_lines_are_accepted(command, arguments, monkeypatch, capsys):
    module, main = door(command)
    seen = []

    def parse(main, config_class, prog, argv=None, *more):
        seen.append(tyro.cli(config_class, args=list(argv)))
        return 0

    monkeypatch.setattr(module, "run_cli", parse)
    try:
        main(arguments)
    except SystemExit:
        pytest.fail(f"python -m {command} {' '.join(arguments)}: {capsys.readouterr().err}")
    assert len(seen) == 1


SMALL = {  # what makes a documented command short: of an option given twice, the last value counts
    "agents.train": "--network mlp --batch-size 64 --eval-every 500 --no-attack --threads 1 --no-progress",
    "attacks": "--n 6",
    "eval.robustness": "--n 6 --attacks fgsm pgd-cleverhans",
    "eval.distributed": "--images 6",
    "eval.mechanism": "--n 6 --steps 3 --resolution 5 --average-images 2 --average-resolution 5 --plane-resolution 5",
    "eval.audit": "--n 4",
    "eval.trajectory": "--n 6 --points 1 --attacks pgd",
    "eval.transfer": "--n 6 --steps 3",
    "eval.study": "--dry-run",
    "eval.export": "--n 6",
}
ELSEWHERE = (
    "zoo:",
    "--pretrained",
    "my_package",
    "--device cuda",
    "onnx",
    "--format all",
)  # needs what a test has not


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which the names that pages use are there: runs, a study's file, data sets."""
    folder = tmp_path_factory.mktemp("documents")
    config = TrainConfig(
        algo="reinforce",
        network="mlp",
        total_images=2_000,
        batch_size=64,
        eval_every=500,
        snapshots="0.1,0.2",
    )
    config = dataclasses.replace(config, attack=False, progress=False, threads=1)
    places = ("RUN", "OTHER_RUN", "DIR", "runs/digits-ppo-small-s0", "runs/digits-reinforce-small-s0")
    places += ("studies/digits",)
    run = train(dataclasses.replace(config, run_dir=folder / "RUN")).path
    train(dataclasses.replace(config, seed=1, run_dir=folder / "RUN2"))
    for place in places[1:]:
        shutil.copytree(run, folder / place, ignore=shutil.ignore_patterns(".*"))
    shutil.copy(run / "policy.zip", folder / "policy.zip")
    toml = "".join(blocks(ROOT / "docs" / "study.md", "toml")).replace("passes = 20", "passes = 0.2")
    toml = toml.replace("seeds = [0, 1]", "seeds = [0]")
    small = "images = 6\ngallery = 2\naudit = {mode = 'none'}\nmechanism = {images = 0}\ntransfer = {crafts = []}\n"
    (folder / "mine.toml").write_text(small + toml)
    (folder / "ppo.yml").write_text(
        "".join(blocks(ROOT / "docs" / "how-to" / "stable-baselines3.md", "yaml"))
    )
    write_mnist(folder / "data")
    image_tree(folder / "cifar10jpg" / "train", {f"class{k}": 20 for k in range(10)}, size=(32, 32))
    image_tree(folder / "cifar10jpg" / "test", {f"class{k}": 2 for k in range(10)}, size=(32, 32))
    return folder


def words_of(command, arguments):
    """The documented words with a small budget, or None for a call that a test cannot make."""
    line = " ".join(arguments)
    if any(part in line for part in ELSEWHERE):
        return None
    line = re.sub(r"(\w+):\d+(,|$|\s)", r"\1:0.1\2", line)  # the phases of a schedule
    line = (
        re.sub(r"--passes \d+", "--passes 0.1", line).replace("[RUN ...]", "RUN2").replace("RUNS", "RUN RUN2")
    )
    words = re.sub(r"\bRUN RUN\b", "RUN RUN2", line).replace("RUN2 RUN2", "RUN2").split()
    extra = SMALL.get(command, "").split()
    if command == "agents.train":
        if "--resume" in words:
            extra = []
        elif "--passes" not in words and "--schedule" not in words:
            extra += ["--total-images", "200"]
        words = [word for word in words if word != "--snapshots" or "--passes" not in words]
        words = words if "--snapshots" in words else [word for word in words if word != "12"]
    if command == "eval.study" and "mine.toml" in words:
        extra = []
    if "--iterations" in words:
        extra += ["--iterations", "1", "2"]
    if command == "eval.trajectory" and "--attacks" in words:
        words = words[: words.index("--attacks")]
    return words + extra


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: page.stem)
def test_command_lines_run(page, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("LABELBANDIT_DATA", str(workplace / "data"))
    monkeypatch.setattr("eval.audit.run.QUICK", TINY)
    for case in command_lines():
        command, arguments = case.values
        words = words_of(command, arguments) if case.id.startswith(f"{page.stem}: ") else None
        if words is not None:
            status = door(command)[1](words)
            assert status == 0, f"python -m {command} {' '.join(words)}: {capsys.readouterr().err[-2000:]}"


# A block that imports one of these ends there where it is missing: only its imports are checked.
NOT_INSTALLED = {"onnxruntime", "robustbench", "wandb", "mlflow", "trackio", "tbparse"}
OFFLINE = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "TRACKIO_DIR": "trackio"}


def names_given(page, folder):
    """The names that a page's blocks take as given."""
    if page.stem not in ("evaluation", "export"):
        return {}
    test = load_dataset("digits", "test")
    images, labels = test.images[:6].float() / 255, test.labels[:6]
    return {"classifier": load_classifier(folder / "RUN"), "images": images, "labels": labels}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_python_blocks_run(page, workplace, tmp_path, monkeypatch):
    how_to = page.parent.name == "how-to"  # these need nothing but their own blocks
    monkeypatch.chdir(tmp_path if how_to else workplace)
    monkeypatch.setattr("eval.audit.run.QUICK", TINY)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    names = {"__name__": "blocks", **names_given(page, workplace)}
    if page.stem == "export":
        for kind, out in (("safetensors", "OUT"), ("torch-export", "PROGRAM")):
            assert door("eval.export")[1](["RUN", out, "--format", kind, "--n", "6", "--force"]) == 0
        shutil.copy("PROGRAM/model.pt2", "OUT")
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks(page, "python"):
            code = compile(block.replace("learn(50_000)", "learn(1_024)"), page.name, "exec")
            try:
                exec(code, names)
            except ModuleNotFoundError as error:
                if error.name.split(".")[0] not in NOT_INSTALLED:
                    raise
    if page.stem == "export":
        assert torch.allclose(names["rebuilt"], names["classifier"](names["images"]), atol=1e-4)
        assert torch.allclose(names["logits"], names["rebuilt"], atol=1e-4)


def test_messages_that_the_faq_quotes_are_those_of_the_program():
    folders = (ROOT / package for package in ("envs", "attacks", "agents", "eval"))
    source = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    source = re.sub(r'"\s*f?"', "", source)  # literals over several lines
    quotes = re.findall(r'^\*\*"(.*?)"\*\*', (ROOT / "docs" / "faq.md").read_text(), flags=re.M)
    assert len(quotes) >= 5
    for quote in quotes:
        longest = max(re.split(r"\.\.\.|'.*?'", quote), key=len)
        assert longest.strip(" ,") in source, quote


FORMER = {
    "eval.battery": ("eval.robustness.suite", "evaluate"),
    "eval.threats": ("eval.core.threats", "Threat"),
    "eval.callback": ("eval.mechanism.callback", "PictureCallback"),
    "agents.policies": ("agents.models.policy", "ImagePolicy"),
}


@pytest.mark.parametrize("former", FORMER)
def test_what_earlier_documentation_imported_is_still_there(former):
    place, name = FORMER[former]
    assert getattr(importlib.import_module(former), name) is getattr(importlib.import_module(place), name)
