"""What is published: the names, the contents of the wheel and the sdist. `make wheels` installs and uses both."""

from __future__ import annotations

import importlib
import io
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, requires, version

import pytest
from click.testing import CliRunner

from tests.end_to_end import distribution
from tests.end_to_end.distribution import NAME, PROJECT, STEM, VERSION


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, made by the hatchling that is installed: no network is needed."""
    return distribution.build(tmp_path_factory.mktemp("built") / "dist", "--no-isolation")


def test_the_wheel_and_the_sdist_hold_what_they_must_and_no_more(built):
    wheel, sdist = built
    assert distribution.wheel_problems(wheel) == []
    assert distribution.sdist_problems(sdist) == []


@pytest.mark.parametrize(
    "name",
    [
        "tvp/sdk/py.typed",
        "tvp/sdk/serve/web/page.js",
        "tvp/trainer/configs/tasks/bad-camera.toml",
        "tvp/export/__init__.py",
        f"{STEM}.dist-info/licenses/LICENSE",
    ],
)
def test_a_wheel_that_lacks_a_file_is_noticed(built, tmp_path, name):
    wheel = rewritten(built[0], tmp_path / "less.whl", without=name)
    assert distribution.wheel_problems(wheel) == [f"The wheel lacks {name}."]


@pytest.mark.parametrize(
    "name", ["tests/tiny.py", "tvp/__init__.py", "tvp/sdk/notes.md", "samples/zoo/blip2/config.json"]
)
def test_a_wheel_with_a_file_too_many_is_noticed(built, tmp_path, name):
    wheel = rewritten(built[0], tmp_path / "more.whl", more=name)
    assert distribution.wheel_problems(wheel) == [f"The wheel holds {name}, which is not the packages'."]


def test_a_wheel_of_another_name_or_that_needs_more_is_noticed(built, tmp_path):
    changes = {
        b"Name: tvp-edge\n": b"Name: tvp\n",
        b"Requires-Dist: click": b"Requires-Dist: torch\nRequires-Dist: click",
    }
    wheel = rewritten(built[0], tmp_path / "other.whl", changes=changes)
    name, needs = distribution.wheel_problems(wheel)
    assert name == "The wheel's Name is tvp, not tvp-edge."
    assert "'torch'" in needs


def test_an_sdist_with_a_run_or_without_a_test_is_noticed(built, tmp_path):
    other = tmp_path / "other.tar.gz"
    with tarfile.open(built[1]) as old, tarfile.open(other, "w:gz", compresslevel=1) as new:
        for member in old:
            if member.name != f"{STEM}/tests/conftest.py":
                new.addfile(member, old.extractfile(member))
        run = tarfile.TarInfo(f"{STEM}/runs/camera/log.jsonl")
        run.size = 2
        new.addfile(run, io.BytesIO(b"{}"))
    assert distribution.sdist_problems(other) == [
        "The sdist lacks tests/conftest.py.",
        "The sdist holds runs/camera/log.jsonl, which is not the repository's.",
    ]


def test_what_is_installed_here_has_the_published_name_and_its_commands_start():
    assert version(NAME) == VERSION
    commands = {entry.name: entry for entry in entry_points(group="console_scripts") if entry.dist.name == NAME}
    assert set(commands) == {"tvp", "tvp-export"}
    assert all(callable(entry.load()) for entry in commands.values())
    said = CliRunner().invoke(importlib.import_module(commands["tvp"].module).cli, ["--version"], prog_name="tvp")
    assert said.output == f"tvp, version {VERSION}\n"


def test_extras_refer_to_the_published_name():
    """`tvp` on the package index is another project."""
    lines = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    assert [line for line in lines if line.startswith(f"{NAME}[")]
    assert not [line for line in [*lines, *requires(NAME)] if line.split("[")[0].strip() == "tvp"]


def test_a_python_that_cannot_be_tried_is_named(monkeypatch, tmp_path):
    for minor, body in {18: "echo 3.18 final", 19: "echo not installed >&2; exit 127", 20: "echo 3.20 beta"}.items():
        (tmp_path / f"python3.{minor}").write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / f"python3.{minor}").chmod(0o755)
    (tmp_path / "python3.9").write_text("#!/bin/sh\necho 3.9 final\n")
    (tmp_path / "python3.9").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    found, left_out = distribution.pythons()
    assert found == {f"3.{sys.version_info.minor}": sys.executable, "3.18": str(tmp_path / "python3.18")}
    assert sorted(left_out) == ["python3.19: not installed", "python3.20: 3.20 beta"]


def test_a_command_that_ends_otherwise_stops_the_check_with_all_that_it_said(tmp_path):
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert distribution.run([sys.executable, "-c", code], tmp_path, status=3) == "out\nerr\n"
    with pytest.raises(SystemExit, match=r"(?s)ended with 3:\nout\nerr"):
        distribution.run([sys.executable, "-c", code], tmp_path)
    with pytest.raises(SystemExit, match="torch came"):
        distribution.expect(False, "torch came")


def rewritten(wheel, other, without=None, more=None, changes=None):
    """A copy of a wheel with a file less, a file more or other metadata."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            for before, after in (changes or {}).items() if name.endswith("/METADATA") else ():
                assert data.count(before) == 1
                data = data.replace(before, after)
            if name != without:
                new.writestr(name, data)
        if more:
            new.writestr(more, "x")
    return other
