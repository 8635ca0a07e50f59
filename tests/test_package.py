"""Wheel and sdist: the same bytes from the same sources, and in them what belongs there and nothing else."""

import importlib.metadata
import lzma
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agents", "attacks", "envs", "eval")
NEEDED = (77,)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folders of two builds."""
    script = ROOT / ".ci" / "build"
    try:
        found = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed")
    if not script.exists() or (int(found.split(".")[0]),) < NEEDED:
        pytest.skip(f"needs the repository, and setuptools 77 or newer, not {found}")
    folders = [tmp_path_factory.mktemp("build") for _ in range(2)]
    for folder in folders:
        command = [sys.executable, str(script), str(folder)]
        environment = {"SOURCE_DATE_EPOCH": "1700000000", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "random"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
    return folders


def sources(*suffixes: str) -> set[str]:
    """Return the relative paths of the packages' files with these suffixes."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in suffixes)
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
@pytest.mark.slow
def test_builds_repeat_bit_by_bit(built, pattern):
    (first,), (second,) = (list(folder.glob(pattern)) for folder in built)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(built):
    (wheel,) = built[0].glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert {PurePosixPath(name).parts[0] for name in inside} == set(PACKAGES)
    assert {name for name in inside if name.endswith(".py")} == sources(".py")
    assert inside - sources(".py", ".typed", ".css", ".js", ".j2", ".toml") == set()
    for package in PACKAGES:
        assert f"{package}/py.typed" in inside
    assert sources(".css", ".js", ".j2", ".toml") <= inside
    assert {PurePosixPath(name).name for name in names - inside} == {
        "LICENSE",
        "METADATA",
        "WHEEL",
        "RECORD",
        "top_level.txt",
    }


@pytest.mark.slow
def test_the_sdist_holds_sources_tests_and_benchmarks(built):
    (sdist,) = built[0].glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert sources(".py", ".typed", ".css", ".js", ".j2") <= names
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "SECURITY.md",
        "tests/conftest.py",
    } <= names
    assert {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")} <= names
    top = {PurePosixPath(name).parts[0] for name in names if "/" in name}
    assert top == {*PACKAGES, "tests", "benchmarks", "labelbandit.egg-info"}


def test_dependencies_have_lower_bounds_and_no_upper_ones():
    """Upper bounds make conflicts for everybody who installs other things beside."""
    for requirement in importlib.metadata.requires("labelbandit"):
        if "extra ==" not in requirement:
            assert ">=" in requirement
            assert "<" not in requirement


def test_results_that_ship_name_no_folder_of_the_machine_that_made_them():
    for path in (ROOT / "docs" / "results").rglob("*.json*"):
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        assert not re.search(rb'"(\w+:)?/\w', content), path
