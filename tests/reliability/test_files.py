"""Disks that are full or read-only, processes in each other's way, and what killed processes leave behind."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.train import run as train_command
from envs import files
from envs.files import write_atomic
from eval.attack import autosave as watch
from eval.attack import command as attack
from eval.attack.parts import PartialStore
from tests.support.agent_runs import QUICK, error_of

MODEL = "tests.eval.test_attack:nearest_mean"
ATTACK = [MODEL, "--attack", "pgd", "--steps", "3", "--n", "32", "--batch-size", "8", "--dataset", "digits"]
ATTACK += ["--device", "cpu", "--no-progress", "--results-dir"]


def attack_error(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert attack.main([*ATTACK, *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_while_writing(path: Path) -> None:
    """Leave the temporary file of a process that is killed before it puts it in place."""

    def child():
        files.os.replace = lambda *_: os.kill(os.getpid(), 9)
        write_atomic(path, b"new")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -9


def test_the_next_write_removes_what_killed_ones_left(tmp_path):
    path, other = tmp_path / "a[1].json", tmp_path / "b.json"
    write_atomic(path, b"old")
    killed_while_writing(path)
    killed_while_writing(path)
    killed_while_writing(other)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3  # the second writer removed what the first left
    write_atomic(path, b"newer")
    assert path.read_bytes() == b"newer"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.name.startswith(".b.json.")


def test_a_write_under_way_is_not_taken_for_an_abandoned_one(tmp_path, monkeypatch):
    """Another process writes the same file in the middle of ours: both succeed, the later one stays."""
    path, real, calls = tmp_path / "a", os.fsync, []

    def meanwhile(handle):
        calls.append(1)
        if len(calls) == 1:
            write_atomic(path, b"inner")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", meanwhile)
    write_atomic(path, b"outer")
    assert path.read_bytes() == b"outer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_stolen_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    path, real, stolen = tmp_path / "a", files.tempfile.mkstemp, []

    def thief(**kwargs):
        handle, name = real(**kwargs)
        if not stolen:
            stolen.append(name)
            os.unlink(name)
        return handle, name

    monkeypatch.setattr(files.tempfile, "mkstemp", thief)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.slow
def test_two_processes_at_one_attack(tmp_path, capsys):
    """The second is refused while the first is at work; parts of the first serve the next call."""
    results = tmp_path / "r"
    assert attack.main([*ATTACK, str(results)]) == 0
    (path,) = results.glob("*.json")
    before = contents(results)
    store = PartialStore(results / ".partial" / path.stem)
    with store.hold():
        message = attack_error(capsys, str(results), "--force")
        assert f"another process is making {path}; wait for it, or choose another --results-dir" in message
    assert contents(results) == before
    assert not (results / ".partial").exists()
    assert attack.main([*ATTACK, str(results), "--force"]) == 0


def test_parts_that_outlived_their_result_are_removed(tmp_path, monkeypatch):
    """A kill between the result and the removal of its parts."""
    results = tmp_path / "r"
    with monkeypatch.context() as patch:
        patch.setattr(PartialStore, "remove", lambda self: None)
        assert attack.main([*ATTACK, str(results)]) == 0
    assert list((results / ".partial").rglob("*.safetensors"))
    assert attack.main([*ATTACK, str(results)]) == 0
    assert not (results / ".partial").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for 100 KB, where the superuser runs the tests."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", place]).returncode:
        pytest.skip("only the superuser can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("filled", [0, 86_000, 90_000])
def test_a_full_disk_ends_training_with_one_line(filled, small_disk, capsys):
    """The checkpoint, or TensorBoard's file, does not fit; what was whole stays so, and more room lets it go on."""
    path = small_disk / "run"
    (small_disk / "filler").write_bytes(b"x" * filled)
    message = error_of(capsys, [*QUICK, "--algo", "supervised", "--run-dir", str(path)])
    assert "No space left on device" in message
    assert message.endswith("check the path, its permissions and the free space")
    assert json.loads((path / "config.json").read_text())["format"] == 1
    assert not list(path.glob(".*.tmp"))
    assert not (path / "checkpoint.pt").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert train_command(["--resume", str(path), "--no-progress"]) == 0


def test_a_full_disk_ends_an_attack_with_one_line(small_disk, capsys, monkeypatch):
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.0)
    (small_disk / "filler").write_bytes(b"x" * 90_000)
    message = attack_error(capsys, str(small_disk / "r"), "--save-images")
    assert "No space left on device" in message
    assert not list(small_disk.rglob("*.tmp"))
    (small_disk / "filler").unlink()
    assert attack.main([*ATTACK, str(small_disk / "r"), "--save-images"]) == 0


@pytest.fixture
def read_only(tmp_path):
    """A directory on a read-only file system, which binds the superuser too."""
    place = tmp_path / "ro"
    place.mkdir()
    if os.geteuid() != 0:
        place.chmod(0o500)
        yield place
        place.chmod(0o700)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=100k", "none", place]).returncode:
        pytest.skip("this machine lets nobody mount")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_read_only_directories_end_with_one_line(read_only, capsys):
    message = error_of(capsys, [*QUICK, "--run-dir", str(read_only / "run")])
    assert "cannot make the run directory" in message
    assert message.endswith("; choose another")
    message = attack_error(capsys, str(read_only / "r"))
    assert "Read-only file system" in message or "Permission denied" in message
    assert "check the path, its permissions and the free space" in message


def test_attacks_on_a_read_only_run(digits_run, tmp_path, capsys):
    """Its own results directory cannot be written; another one can."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    shutil.rmtree(run / "results", ignore_errors=True)
    (run / "results").write_text("in the way")
    argv = [str(run), "--attack", "fgsm", "--n", "8", "--device", "cpu", "--no-progress"]
    assert attack.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(run / "results") in error
    assert attack.main([*argv, "--results-dir", str(tmp_path / "r")]) == 0


INTERRUPT = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
sys.orig_argv[:] = ["python", "-m", "{program}"]
sys.argv[:] = ["-m", *"{arguments}".split()]

class Raise:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Raise())
{code}
print("unreachable")
"""


def interrupted(**parts):
    script = INTERRUPT.format(**parts)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arguments", "module"),
    [
        ("agents.train", "", "tyro"),
        ("agents.train", "", "stable_baselines3"),
        ("attacks", "RUN --attack pgd", "torch"),
        ("eval.robustness", "RUN", "torch"),
    ],
)
def test_ctrl_c_while_a_program_is_imported(program, arguments, module):
    """Before its command line is read, and after it, when what does the work is imported.

    Python sets ``sys.argv[0]`` to -m while it imports the package of a program; so does this script.
    """
    package = program.partition(".")[0]
    code = f"import {package}; runpy.run_module({program!r}, run_name='__main__', alter_sys=True)"
    done = interrupted(program=program, arguments=arguments, module=module, code=code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.slow
def test_ctrl_c_is_left_alone_in_libraries():
    code = "import attacks; attacks.pgd"
    done = interrupted(program="pytest", arguments="", module="attacks.gradient.pgd", code=code)
    assert done.stderr.endswith("KeyboardInterrupt\n")
