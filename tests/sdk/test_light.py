"""The sdk is light: what it imports, what it exports, and what the commands do without the extras."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tvp import sdk

ALLOWED = {"numpy", "PIL", "tokenizers", "onnxruntime", "click", "tvp"}
# What those bring along themselves.
COMPANIONS = {
    "flatbuffers",
    "google",
    "packaging",
    "huggingface_hub",
    "coloredlogs",
    "humanfriendly",
    "mpmath",
    "sympy",
}

PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_public_names():
    assert sorted(sdk.__all__) == [
        "Answer",
        "ImageLike",
        "ImageLimits",
        "Options",
        "Ranked",
        "Task",
        "View",
        "doctor",
        "errors",
        "home",
        "load",
        "read_image",
        "tasks",
        "unlikeness",
    ]


def test_every_public_name_is_there():
    assert all(getattr(sdk, name) is not None for name in sdk.__all__)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        sdk.laod  # noqa: B018
    assert set(sdk.__all__) <= set(dir(sdk))


def test_importing_the_sdk_imports_nothing_heavy():
    code = """
import sys, json
from tvp import sdk
early = {m.split('.')[0] for m in sys.modules}
[getattr(sdk, name) for name in sdk.__all__]
print(json.dumps([sorted(early), sorted({m.split('.')[0] for m in sys.modules})]))
"""
    early, loaded = map(set, json.loads(run(code)))
    assert not early & {"numpy", "PIL", "tokenizers"}
    third_party = loaded - set(sys.stdlib_module_names) - ALLOWED - COMPANIONS
    assert not {name for name in third_party if not name.startswith("_")}
    assert not loaded & {"torch", "transformers", "onnxruntime", "click"}


def test_a_first_load_does_not_pay_for_other_uses():
    """A .tvp file, a picture's file, a check and a mistake import what they need when they come."""
    code = "import sys, json; from tvp import sdk; sdk.load; print(json.dumps([*sys.modules]))"
    late = {"zipfile", "difflib", "PIL.JpegImagePlugin"}
    late |= {f"tvp.sdk.{name}" for name in ("formats.archive", "formats.golden", "_check", "_image_files")}
    assert not late & {*json.loads(run(code))}


def test_asking_needs_neither_torch_nor_transformers(one_bundle):
    code = f"""
import sys, importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers', 'optimum', 'onnx', 'safetensors'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from tvp import sdk
with sdk.load({str(one_bundle)!r}) as task:
    print(task.ask(np.zeros((9, 9, 3), np.uint8), 'What?').tokens)
    print(task.check()['cases'])
"""
    assert run(code).split()[-1] == "4"


ALLOWED_FOR_HELP = ["click", "numpy", "PIL", "tvp"]


def test_every_command_explains_itself_without_the_extras():
    """Help is there at once: no command imports more than the sdk has before it runs."""
    code = f"""
import json, sys, importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split('.')[0]
        if top not in sys.stdlib_module_names and top not in {ALLOWED_FOR_HELP}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from click.testing import CliRunner
from tvp.sdk.cli import COMMANDS, cli
print(json.dumps({{name: CliRunner().invoke(cli, [name, '--help']).output[:200] for name in COMMANDS}}))
"""
    said = json.loads(run(code))
    assert "train" in said
    assert {name: text for name, text in said.items() if not text.startswith(f"Usage: cli {name} ")} == {}


def test_a_command_without_its_extra_says_what_to_install(tmp_path):
    code = f"""
import sys, importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers', 'jaxtyping'):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from click.testing import CliRunner
from tvp.sdk.cli import cli
for command, task in (('train', 'count'), ('eval', 'count'), ('export', 'count')):
    result = CliRunner().invoke(cli, [command, '-m', 'zoo:blip2', '-t', task, '-o', {str(tmp_path / "out")!r}])
    print(result.exit_code, result.output)
"""
    said = run(code)
    assert said.count("1 Error: `tvp ") == 3
    assert said.count("pip install '.[train]'") == 2
    assert "pip install '.[export,cpu]'" in said


def test_nothing_that_runs_code_is_unpickled():
    """Pickles run what their author wants; no package reads one, and arrays and checkpoints only without."""
    folders = [Path(importlib.import_module(f"tvp.{name}").__file__).parent for name in ("sdk", "export", "trainer")]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    # It goes through a pickle in Python and calls nothing but what it lists, so that torch reads no other one.
    (reader,) = (file for file in files if file.name == "tensor_files.py")
    assert len(list(unpickles(reader))) == 2  # its imports
    found = [line for file in files if file != reader for line in unpickles(file)]
    assert not found, found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import _pickle as harmless",
        "import dill, os",
        "from joblib import load",
        "import shelve",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import torch as t\nt.load('x', 'cpu')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nallowed = True\nnp.load('x', allow_pickle=allowed)",
        "import pandas as pd\npd.read_pickle('x')",
        "__import__('pickle').loads(b'')",
        "import importlib\nimportlib.import_module('pickle')",
        "from numpy import load\nload('x', allow_pickle=True)",
        "from torch import load",
    ],
)
def test_what_unpickles_is_found(code, tmp_path):
    (tmp_path / "x.py").write_text(code)
    assert unpickles(tmp_path / "x.py")


def unpickles(file):
    """Lines of a file that unpickle, or may: modules that do, torch.load and np.load where nothing forbids it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {}  # a name here -> what it is
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value in PICKLING else []
        if any(name.split(".")[0] in PICKLING or name == "torch.load" for name in names):
            yield where
        if isinstance(node, ast.Attribute) and node.attr in ("read_pickle", "to_pickle", "unpickle"):
            yield where
        if not isinstance(node, ast.Call):
            continue
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        allowed = options.get("allow_pickle")
        if allowed is not None and not (isinstance(allowed, ast.Constant) and allowed.value is False):
            yield where
        function = node.func
        if (
            isinstance(function, ast.Attribute)
            and function.attr == "load"
            and isinstance(function.value, ast.Name)
            and imported.get(function.value.id) == "torch"
        ):
            safe = options.get("weights_only")
            if not (isinstance(safe, ast.Constant) and safe.value is True):
                yield where
