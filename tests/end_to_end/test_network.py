"""Nothing is sent anywhere, and no file is written outside of the folders of a run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.paired import ROOT

# The calls by which a program reaches another machine, and those by which it makes a file.
TRACED = "trace=connect,sendto,sendmsg,sendmmsg,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2"
ADDRESS = re.compile(r'sin6?_addr=inet_(?:addr|pton)\((?:AF_INET6?, )?"([^"]+)"')
MADE = re.compile(r'(?:open|openat|creat|mkdir|mkdirat)\((?:AT_FDCWD, |\d+[^,]*, )?"([^"]+)".*= \d')
LOCAL = ("127.", "::1", "::ffff:127.")
SYSTEM = ("/dev/", "/proc/", "/sys/")

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which lists system calls, is missing")


def traced(tmp_path: Path, *command: str) -> tuple[set[str], set[str]]:
    """Run Python with these arguments; returns the addresses that it reached, and the files and folders it made."""
    folders = {name: tmp_path / name for name in ("user", "work", "scratch")}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    home = folders["user"]
    said = {"HOME": home, "XDG_CACHE_HOME": home / ".cache", "TVP_HOME": home / "tvp", "TMPDIR": folders["scratch"]}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "HF_", "TVP_"))}
    paths = os.pathsep.join(str(ROOT / package) for package in ("sdk", "export", "trainer"))
    more = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **{key: str(value) for key, value in said.items()}}
    log = tmp_path / "calls"
    done = subprocess.run(
        ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "4096", "-e", TRACED, "-o", log, sys.executable, *command],
        env=kept | more, cwd=folders["work"], capture_output=True, text=True,
    )  # fmt: skip
    if "ptrace" in done.stderr and "not permitted" in done.stderr.lower():
        pytest.skip("this machine does not let strace look at a program")
    assert done.returncode == 0, done.stderr
    calls = log.read_text(errors="replace").splitlines()
    reached = {match[1] for line in calls if (match := ADDRESS.search(line))}
    written = [line for line in calls if "O_CREAT" in line or "creat(" in line or "mkdir" in line]
    return reached, {match[1] for line in written if (match := MADE.search(line))}


def outside(made: set[str], *folders: Path) -> list[str]:
    """The absolute paths that lie in none of these folders; relative ones lie in the run's working folder."""
    allowed = (*SYSTEM, *(f"{folder}" for folder in folders))
    return sorted(path for path in made if path.startswith("/") and not path.startswith(allowed))


ASK = "import sys; from tvp import sdk; sdk.load(sys.argv[1], providers='cpu').ask(sys.argv[2], 'What is it?')"
TVP = ("-m", "tvp.sdk.cli")


@pytest.mark.parametrize("what", ["ask", "export", "eval"])
def test_a_run_reaches_nobody_and_writes_in_its_own_folders_only(what, one_bundle, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(picture)
    output = tmp_path / "bundle"
    command = {
        "ask": ("-c", ASK, str(one_bundle), str(picture)),
        "export": (*TVP, "export", "-m", "zoo:llava", "-t", "scenes", "-o", str(output), "--cases", "1"),
        "eval": (*TVP, "eval", "-m", "zoo:llava", "--task", "scenes", "--n", "4"),
    }[what]
    reached, made = traced(tmp_path, *command)
    assert [address for address in reached if not address.startswith(LOCAL)] == []
    assert (
        outside(made, *(tmp_path / name for name in ("work", "scratch", "user/tvp")), tmp_path / ".bundle", output)
        == []
    )


def test_the_test_sees_what_is_reached_and_written(tmp_path):
    code = (
        "import socket, os; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9));"
        "open(os.path.expanduser('~/left'), 'w')"
    )
    reached, made = traced(tmp_path, "-c", code)
    assert reached == {"192.0.2.1"}
    assert outside(made, tmp_path / "work") == [str(tmp_path / "user" / "left")]


def test_who_wants_telemetry_keeps_it():
    code = "from tvp import sdk; import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, found in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
        call = [sys.executable, "-c", code]
        assert subprocess.check_output(call, env=environment | given, text=True).strip() == found
