"""The floors of the project: imports go only downwards, and the attacks need PyTorch alone."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "envs": {"envs"},
    "attacks": {"attacks"},
    "agents": {"agents", "envs", "attacks"},
    "eval": {"eval", "agents", "envs", "attacks"},
    "benchmarks": {"benchmarks", "tests", "eval", "agents", "envs", "attacks"},
}
# against the rule: when it runs as a program
LAZY = {"attacks/__main__.py": {"eval"}}
BY_HAND = {"atheris"}  # for single measurements, which say so where it is missing
PACKAGES = {
    "yaml": "pyyaml",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "stable_baselines3": "stable-baselines3",
    "markupsafe": "jinja2",  # whose part it is
}


@functools.cache
def imports(path):
    """Return (package, whether importing the file imports it) of every import in it; "" stands for relative ones."""
    found = []

    def visit(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name.partition(".")[0], top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.append(("" if child.level else child.module.partition(".")[0], top))
            else:
                lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or as_program(child)
                visit(child, top and not lazy)

    visit(ast.parse(path.read_text()), True)
    return found


def as_program(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def modules(package):
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_downwards(package):
    ours = {*FLOORS, "tests"}
    for name in modules(package):
        for imported, top in imports(ROOT / name):
            allowed = imported in FLOORS[package] or (imported in LAZY.get(name, ()) and not top)
            assert allowed or imported not in ours, f"{name} imports {imported}"


def graph(root):
    """Return the modules below ``root`` that each one names in an import, functions and TYPE_CHECKING included."""
    paths = [path for package in FLOORS for path in (root / package).rglob("*.py")]
    known = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }
    edges = {}
    for name, path in known.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                named |= {dotted if dotted in known else node.module for dotted in whole.values()}
        edges[name] = (named & set(known)) - {name}
    return edges


def private_names(path):
    """Return the names with an underscore that a file takes from our modules: imported, as attributes, in strings."""
    tree, found, modules_by_name = ast.parse(path.read_text()), [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FLOORS:
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                if (ROOT / dotted.replace(".", "/")).with_suffix(".py").exists():
                    modules_by_name[alias.asname or alias.name] = dotted
                found.append(dotted)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in FLOORS:
                    modules_by_name[alias.asname or alias.name] = alias.name
                    found.append(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (owner := modules_by_name.get(ast.unparse(node.value))):
            found.append(f"{owner}.{node.attr}")
        elif isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            found.append(f"{modules_by_name.get(ast.unparse(node.args[0]))}.{node.args[1].value}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(rf"^(?:{'|'.join(FLOORS)})(?:\.\w+)+$", node.value)
    return [name for name in found if re.search(r"^\w+\..*\b_(?!_)", name) and not name.startswith("None.")]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["benchmarks", "tests"])
def test_tests_and_benchmarks_use_public_names_alone(package):
    for name in modules(package):
        assert private_names(ROOT / name) == [] or name == "tests/test_floors.py", name


def test_private_names_are_found(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        "import agents.config as config\nfrom envs import task, files as f\nfrom eval.core.stats import _a, b\n"
        "config._from_dict, f.write, task._check_shard, b._own, __name__\n'agents.training.run._learn'\n"
    )
    found = ["eval.core.stats._a", "agents.config._from_dict", "envs.task._check_shard"]
    assert sorted(private_names(source)) == sorted([*found, "agents.training.run._learn"])


def circles(edges):
    """Return the modules that lie on circles, or between two: those that import and are imported by some of them."""
    left = dict(edges)
    while True:
        imported = set().union(*left.values())
        free = [name for name, named in left.items() if not named & set(left) or name not in imported]
        if not free:
            return sorted(left)
        for name in free:
            del left[name]


@pytest.mark.slow
def test_no_imports_go_in_circles():
    """A package's ``__init__`` offers what its modules define, so the programs behind doors count as above it."""
    edges = {
        name: named for name, named in graph(ROOT).items() if not LAZY.get(name.replace(".", "/") + ".py")
    }
    assert circles(edges) == []


def test_circles_are_found(tmp_path):
    for package in FLOORS:
        (tmp_path / package).mkdir()
    (tmp_path / "envs" / "a.py").write_text("def f():\n    from envs.b import g\n")
    (tmp_path / "envs" / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import envs.a\n"
    )
    (tmp_path / "envs" / "c.py").write_text("import envs.d\n")
    (tmp_path / "envs" / "d.py").write_text("import ast\n")
    assert circles(graph(tmp_path)) == ["envs.a", "envs.b"]


def test_attacks_import_torch_alone():
    for name in modules("attacks"):
        for imported, top in imports(ROOT / name):
            allowed = imported in {"", "torch", "attacks"} or imported in sys.stdlib_module_names
            lazily = {"foolbox", *LAZY.get(name, ())}
            assert allowed or (imported in lazily and not top), f"{name} imports {imported}"


@pytest.mark.slow
def test_everything_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    optional = {
        re.match(r"[\w-]+", requirement)[0]
        for group in project["optional-dependencies"].values()
        for requirement in group
    }
    for package in FLOORS:
        for name in modules(package):
            for imported, top in imports(ROOT / name):
                if imported in {"", "tests", *FLOORS} or imported in sys.stdlib_module_names:
                    continue
                known = declared if top and package != "benchmarks" else declared | optional
                known = known | BY_HAND if package == "benchmarks" and not top else known
                assert PACKAGES.get(imported, imported) in known, f"{name} imports {imported}"


NOT_FOR_ATTACKS = (
    "numpy",
    "scipy",
    "gymnasium",
    "stable_baselines3",
    "torchvision",
    "tyro",
    "rich",
    "foolbox",
)
WITHOUT = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*NOT_FOR_ATTACKS, "envs", "agents", "eval")!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import torch
import attacks

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
images = torch.rand(8, 3, 2, 2)
labels = model(images).argmax(1)
result = attacks.pgd(model, images, labels, norm="L2", eps=1.0, steps=5)
print(result.success.sum().item(), len(labels))
"""


@pytest.mark.slow
def test_attacks_run_where_nothing_but_torch_is_installed():
    """The import hook stands for a machine that lacks the other packages, NumPy included."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    broken, images = map(int, done.stdout.split())
    assert 0 < broken <= images


def test_the_check_sees_what_it_should(tmp_path):
    """Imports in functions, relative ones and dotted ones count."""
    source = tmp_path / "module.py"
    source.write_text(
        "import numpy.linalg\nfrom . import own\n"
        "def function():\n    from agents.config import x\n"
        "class Kind:\n    import envs\n"
        "if __name__ == '__main__':\n    import eval\n"
    )
    found = [("numpy", True), ("", True), ("agents", False), ("envs", True), ("eval", False)]
    assert imports(source) == found
