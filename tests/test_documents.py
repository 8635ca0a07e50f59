"""What README and docs show works: Python blocks run, and every command line is one that the program accepts."""

import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
WHOLE = sorted(
    (ROOT / "docs" / "how-to").glob("*.md")
)  # pages whose Python blocks need nothing but each other
COMMANDS = {
    "attacks": "eval.attack.command",
    "agents.train": "agents.train",
    "eval.distributed": "eval.robustness.distributed",
    **{
        f"eval.{name}": f"eval.{name}.command"
        for name in ("robustness", "mechanism", "study", "report", "export", "transfer", "trajectory")
    },
    "eval.audit": "eval.audit",
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.S | re.M)


@pytest.mark.parametrize(
    "page", [page for page in WHOLE if blocks(page, "python")], ids=lambda page: page.stem
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "blocks"}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks(page, "python"):
            exec(compile(block, page.name, "exec"), names)


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
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "-m" in words and words[words.index("-m") + 1] in COMMANDS:
                    start = words.index("-m") + 1
                    yield pytest.param(
                        words[start], words[start + 1 :], id=f"{page.stem}: {' '.join(words[start:])}"
                    )


@pytest.mark.parametrize(("command", "arguments"), [*command_lines()])
def test_command_lines_are_accepted(command, arguments, monkeypatch, capsys):
    module = importlib.import_module(COMMANDS[command])
    seen = []

    def parse(main, config_class, prog, argv=None, defaults=None):
        seen.append(tyro.cli(config_class, args=list(argv)))
        return 0

    monkeypatch.setattr(module, "run_cli", parse)
    door = module.run if command == "agents.train" else module.main
    try:
        door(arguments)
    except SystemExit:
        pytest.fail(f"python -m {command} {' '.join(arguments)}: {capsys.readouterr().err}")
    assert len(seen) == 1


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
