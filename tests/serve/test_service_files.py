"""samples/service: the unit is verified by systemd itself, and what the files start is a command that there is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.serve.running import ROOT
from tvp.sdk.serve.command import serve
from tvp.sdk.serve.settings import Settings

FOLDER = ROOT / "samples" / "service"
UNIT = (FOLDER / "tvp.service").read_text(encoding="utf-8")
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    """But for its program, which lies elsewhere here. A line that systemd does not know is told."""
    for name, text, expected in (
        ("tvp", UNIT, ""),
        ("wrong", UNIT.replace("UMask=", "Umask="), "'Umask'"),
    ):
        file = tmp_path / f"{name}.service"
        file.write_text(text.replace("/opt/tvp/bin/tvp", sys.executable), encoding="utf-8")
        done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if f"{name}.service" in line]
        if expected:
            assert expected in "".join(said)
        else:
            assert (done.returncode, said) == (0, [])


def options(words):
    """Parse a command as `tvp serve` does; it fails for an option that there is none."""
    assert words[:2] == ["tvp", "serve"]
    return serve.make_context("serve", words[2:]).params


def test_the_unit_starts_a_command_that_there_is_and_lets_it_answer():
    program, *words = shlex.split(re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)[1])
    assert program == "/opt/tvp/bin/tvp"
    found = options(["tvp", *words])
    assert (str(found["task_list"]), str(found["keys"])) == ("/etc/tvp/tasks.txt", "/etc/tvp/keys.txt")
    stop = int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1])
    assert stop >= Settings().time_limit + 10  # the server's own patience
    grace = re.search(r"^    stop_grace_period: (\d+)s$", (FOLDER / "compose.yaml").read_text(), re.MULTILINE)[1]
    assert int(grace) == stop


def test_the_image_is_made_of_what_there_is_and_starts_a_command_that_there_is():
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.search(r"'\.\[([\w,]+)\]'", DOCKERFILE)[1].split(",")) <= set(known)
    found = options([*json.loads(re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)[1]), "/tasks/camera"])
    assert (found["host"], str(found["keys"]), found["tasks"]) == ("0.0.0.0", "/keys.txt", ("/tasks/camera",))


def test_compose_gives_the_image_what_it_needs():
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the file, and it is not here")
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]["tvp"]
    assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == FOLDER / "Dockerfile"
    places = dict(volume.split(":")[:2][::-1] for volume in service["volumes"])
    assert set(places) == {"/tasks", "/keys.txt"}
    assert service["command"][0].startswith("/tasks/")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
