"""What may import what: the pure rooms know no model or trainer, and nothing needs another framework."""

import ast
import json
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import jaxalign

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("losses", "rewards", "controllers", "gradients", "diagnostics")
MODULES = sorted(module.name for module in pkgutil.walk_packages(jaxalign.__path__, "jaxalign."))
# Text files of the project itself; what is not there yet is not looked for.
PLACES = ("jaxalign", "experiments", "configs", "tests", "docs", "colab", "benchmarks", ".ci")
SUFFIXES = {".py", ".md", ".ipynb", ".sh", ".css", ".cfg", ".toml", ".txt", ".yaml", ".yml", ".json"}


def imports(path):
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_the_pure_rooms_can_be_taken_away(room):
    """Only jax, optax, chex and NumPy; of this project only each other and four files at its root."""
    files = ("jaxalign.objective", "jaxalign.errors", "jaxalign.placement", "jaxalign.products")
    own = (*files, *(f"jaxalign.{other}" for other in ROOMS))
    for path in sorted((ROOT / "jaxalign" / room).rglob("*.py")):
        for name in imports(path):
            package = name.partition(".")[0]
            if package == "jaxalign":
                assert name.startswith(own), f"{path} imports {name}"
            else:
                assert package in {"jax", "optax", "chex", "numpy"} | sys.stdlib_module_names, f"{path} imports {name}"


def test_the_library_does_not_know_its_experiments():
    for path in sorted((ROOT / "jaxalign").rglob("*.py")):
        for name in imports(path):
            assert name.partition(".")[0] not in ("experiments", "configs", "tests"), f"{path} imports {name}"


# Imports modules one after the other; whoever asks for a blocked package is noted, and told that it is not installed.
WATCH = """
    import importlib, json, sys, traceback
    blocked, modules = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    asked = []

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in blocked:
                files = [frame.filename for frame in traceback.extract_stack() if "importlib" not in frame.filename]
                asked.append((name, files[-2]))
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Block())
    for module in modules:
        importlib.import_module(module)
    print(json.dumps({"asked": asked, "loaded": sorted(set(blocked) & set(sys.modules))}))
"""


def watch(blocked, modules):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WATCH), json.dumps(blocked), json.dumps(modules)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    return [(name, file) for name, file in found["asked"] if Path(file).is_relative_to(ROOT / "jaxalign")]


def test_no_module_asks_for_torch_transformers_or_tensorflow():
    """Whether or not they are installed. (Libraries may look for them, and do without.)"""
    assert len(MODULES) > 40
    assert watch(["torch", "transformers", "tensorflow", "tensorboard"], MODULES) == []


def test_the_package_itself_imports_nothing():
    assert watch(["jax", "numpy", "flax", "optax"], ["jaxalign"]) == []


def test_what_is_needed_for_one_kind_of_data_is_imported_on_use():
    slow = ["tensorflow_datasets", "reasoning_gym", "pyarrow", "huggingface_hub", "matplotlib", "clu"]
    modules = [name for name in MODULES if name.startswith(("jaxalign.data", "jaxalign.models", "jaxalign.training"))]
    assert watch(slow, modules) == []


def project_files():
    top = [path for path in ROOT.iterdir() if path.is_file()]
    inside = [path for place in PLACES for path in (ROOT / place).rglob("*") if path.is_file()]
    for path in top + inside:
        if path.suffix in SUFFIXES or path.name in ("Makefile", "LICENSE"):
            yield path


def test_no_file_names_a_place_on_somebodys_machine():
    """Absolute paths below the usual homes of people and build machines."""
    place = re.compile(r"(?<![\w.~/])/(?:home|root|Users|work|workspace|mnt)/\w")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if place.search(line)
    ]
    assert found == []
