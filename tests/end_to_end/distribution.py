"""Builds the wheel and the sdist, installs each in an empty environment, and asks the golden bundles there.

python -m tests.end_to_end.distribution [VERSION ...]

`make wheels` runs this. The wheel is tried on every Python of the machine that the project supports, or on the
versions that are named (3.12); the sdist on the Python that runs this. Only the package index is needed.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME, VERSION = PROJECT["name"], PROJECT["version"]
STEM = f"{NAME.replace('-', '_')}-{VERSION}"
LOWEST = 11  # the minor version of `requires-python`
PACKAGES = ("sdk", "export", "trainer")
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
SLIM = {"numpy", "pillow", "tokenizers", "click"}
ABSENT = ("torch", "torchvision", "transformers", "optimum", "onnx", "safetensors", "open_clip", "jaxtyping")
# What would lead a command of a new environment elsewhere.
LEADS_ASTRAY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TVP_HOME", "TVP_ZOO", "PIP_TARGET", "PIP_USER")


def main() -> None:
    began = time.perf_counter()
    found, left_out = pythons()
    for reason in left_out:
        print(f"Not tried: {reason}")
    if unknown := set(sys.argv[1:]) - set(found):
        sys.exit(f"There is no Python {', '.join(sorted(unknown))} here; there are {', '.join(found)}.")
    chosen = {version: file for version, file in found.items() if version in (sys.argv[1:] or found)}
    with tempfile.TemporaryDirectory(prefix="tvp-wheels-") as name:
        folder = Path(name)
        wheel, sdist = build(folder / "dist")
        if problems := [*wheel_problems(wheel), *sdist_problems(sdist)]:
            sys.exit("\n".join(problems))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e3:.0f} kB; {sdist.name}: {sdist.stat().st_size / 1e6:.0f} MB")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        source = folder / STEM
        jobs = [(wheel, version, file) for version, file in chosen.items()]
        jobs.append((sdist, f"3.{sys.version_info.minor}", sys.executable))
        with ThreadPoolExecutor(2) as pool:  # an installation waits for the network and the disk
            said = [
                pool.submit(try_slim, file, artefact, folder / f"slim-{i}", source)
                for i, (artefact, version, file) in enumerate(jobs)
            ]
            for (artefact, version, _), future in zip(jobs, said, strict=True):
                kind = "wheel" if artefact == wheel else "sdist"
                print(f"Python {version}, {kind}: {future.result()}", flush=True)
        print(f"Beside PyTorch, wheel: {try_with_torch(wheel, folder / 'with-torch')}")
    print(f"The wheel runs on Python {', '.join(chosen)} ({time.perf_counter() - began:.0f} s).")


# --- What is built


def build(folder: Path, *options: str) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from the sdist; returns (wheel, sdist)."""
    run([sys.executable, "-m", "build", "--outdir", folder, *options, ROOT], folder.parent)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def repository(*others: str) -> set[str]:
    """Files of the repository, relative to it; with --others those that are new and not ignored too."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", *others]
        names = run(command, ROOT).split("\0")
        return {name for name in names if name and (ROOT / name).is_file()}
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    files = (file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file())  # of an unpacked sdist
    return {
        file.as_posix()
        for file in files
        if not any(parent.match(line) for parent in (file, *file.parents) for line in ignored)
    } - {"PKG-INFO"}


def wheel_problems(wheel: Path) -> list[str]:
    """Differences between a wheel and what it must hold: the packages, their settings, the licence, metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        texts = {name: archive.read(name).decode() for name in names if ".dist-info/" in name}
    info = f"{STEM}.dist-info/"
    wanted, allowed = (
        {
            name.split("/", 1)[1]
            for name in repository(*others)
            if re.fullmatch(rf"({'|'.join(PACKAGES)})/tvp/(\1)/.+\.(py|toml|typed|html|css|js|svg)", name)
        }
        for others in ((), ("--others", "--exclude-standard"))
    )
    about = {info + name for name in METADATA}
    must = {f"tvp/{package}/py.typed" for package in PACKAGES} | {"tvp/trainer/configs/methods/tvp.toml"}
    problems = [f"The wheel lacks {name}." for name in sorted((wanted | about | must) - names)]
    problems += [f"The wheel holds {name}, which is not the packages'." for name in sorted(names - allowed - about)]

    metadata = HeaderParser().parsestr(texts.get(f"{info}METADATA", ""))
    for field, expected in {
        "Name": NAME,
        "Version": VERSION,
        "Requires-Python": f">=3.{LOWEST}",
        "License-Expression": "Apache-2.0",
    }.items():
        if metadata[field] != expected:
            problems.append(f"The wheel's {field} is {metadata[field]}, not {expected}.")
    needs = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    if (slim := {re.split(r"[^\w-]", line)[0] for line in needs}) != SLIM:
        problems.append(f"Without an extra the wheel needs {sorted(slim)}, not {sorted(SLIM)}.")
    return problems


def sdist_problems(sdist: Path) -> list[str]:
    """Differences between an sdist and the repository: all that builds and tests, and no run."""
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(f"{STEM}/") for member in archive if not member.isdir()}
    problems = [f"The sdist lacks {name}." for name in sorted((repository() | {"PKG-INFO"}) - names)]
    allowed = repository("--others", "--exclude-standard") | {"PKG-INFO"}
    return problems + [f"The sdist holds {name}, which is not the repository's." for name in sorted(names - allowed)]


# --- What is installed


def pythons() -> tuple[dict[str, str], list[str]]:
    """One Python for each version from the lowest on, and why others are left out.

    Returns: {"3.12": file}, of this very Python, of the PATH and of pyenv; and a line for each that does not start,
    has no ensurepip (Debian's python3-venv) or is no final release.
    """
    folders = [*os.get_exec_path(), *glob.glob(str(Path.home() / ".pyenv" / "versions" / "*" / "bin"))]
    files = [os.path.join(folder, name) for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)]
    found, left_out = {f"3.{sys.version_info.minor}": sys.executable}, {}
    code = "import sys, ensurepip; print(*sys.version_info[:2], sep='.', end=' '); print(sys.version_info.releaselevel)"
    for file in files:
        match = re.fullmatch(r"python(3\.(\d+))", os.path.basename(file))
        if match is None or int(match[2]) < LOWEST or match[1] in found:
            continue
        done = subprocess.run([file, "-I", "-c", code], capture_output=True, text=True, timeout=60)
        if done.returncode == 0 and done.stdout.split() == [match[1], "final"]:
            found[match[1]] = file
        else:
            said = (done.stdout + done.stderr).strip() or f"ended with {done.returncode}"
            left_out[match[1]] = f"python{match[1]}: {said.splitlines()[-1]}"
    ordered = sorted(found, key=lambda version: int(version.split(".")[1]))
    return {v: found[v] for v in ordered}, [reason for v, reason in left_out.items() if v not in found]


def try_slim(python: str, artefact: Path, folder: Path, source: Path) -> str:
    """Install with the extra `cpu` alone, and use all that needs no more.

    Args:
        python: the Python of the environment.
        artefact: a wheel or an sdist.
        folder: where the environment goes.
        source: the unpacked sdist, whose golden bundles are asked.

    Returns: what was seen, in a line.
    Raises: SystemExit with what a command said, or with what is not as it must be.
    """
    began = time.perf_counter()
    scripts = environment(python, folder)
    run([scripts / "pip", "install", "--quiet", f"{artefact}[cpu]"], folder)
    run([scripts / "pip", "check"], folder)

    code = f"import importlib.util as u, tvp.sdk; print(tvp.sdk.__file__, *filter(u.find_spec, {ABSENT}))"
    place, *there = run([scripts / "python", "-c", code], folder).split()
    expect(not there, f"{there} came with the slim installation")
    expect(Path(place).is_relative_to(folder.resolve()), f"tvp.sdk is of {place}")

    expect(run([scripts / "tvp", "--version"], folder).strip() == f"tvp, version {VERSION}", "tvp --version")
    said = run([scripts / "tvp", "--help"], folder)
    expect(all(f"\n  {name} " in said for name in ("train", "export", "ask", "check", "doctor")), said)
    said = run([scripts / "tvp", "train", "-m", "zoo:blip2", "-o", "run"], folder, status=1)
    expect("[train]'" in said and "Traceback" not in said, said)
    said = run([scripts / "tvp-export", "-m", "zoo:blip2", "-o", "bundle"], folder, status=1)
    expect("[export,cpu]'" in said and "Traceback" not in said, said)
    said = run([scripts / "tvp", "doctor"], folder)
    expect(re.search(rf"^{NAME} +{re.escape(VERSION)}$", said, re.MULTILINE) is not None, said)
    expect("CPUExecutionProvider" in said, said)

    bundles = sorted((source / "tests" / "goldens").glob("format-*/*.tvp"))
    expect(len(bundles) >= 2, f"{len(bundles)} golden bundles in the sdist")
    for bundle in bundles:
        said = run([scripts / "tvp", "check", bundle], folder)
        expect(re.match(r"(\d+) of \1 golden cases equal", said) is not None, said)
    cases = ", ".join(f'"{file}": {file.with_suffix(".json").read_text(encoding="utf-8")}' for file in bundles)
    (folder / "cases.json").write_text(f"{{{cases}}}", encoding="utf-8")
    replay = source / "tests" / "goldens" / "replay.py"
    n_equal = int(run([scripts / "python", "-W", "error", replay, "cases.json"], folder))
    return f"{len(bundles)} bundles checked, {n_equal} answers as PyTorch's ({time.perf_counter() - began:.0f} s)"


def try_with_torch(wheel: Path, folder: Path) -> str:
    """Put the wheel's packages before this environment's: a prompt is trained without the repository."""
    began = time.perf_counter()
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel], folder.parent)
    train = [sys.executable, "-m", "tvp.trainer", "--task", "bad-camera", "--tse", "0", "--steps", "1", "--batch", "2"]
    train += ["--n-train", "8", "--n-validation", "4", "--keep", "last", "-o", folder / "run", "-m"]
    said = run([*train, "zoo:blip2"], folder, status=1, PYTHONPATH=str(folder))
    expect("samples/zoo" in said and "Traceback" not in said, said)
    run([*train, ROOT / "samples" / "zoo" / "blip2"], folder, PYTHONPATH=str(folder))
    expect((folder / "run" / "prompt.safetensors").is_file(), "no prompt was written")
    return f"trained a step, and says where zoo: is ({time.perf_counter() - began:.0f} s)"


def environment(python: str, folder: Path) -> Path:
    """Make an empty virtual environment; returns the folder of its commands."""
    folder.mkdir(parents=True)
    run([python, "-m", "venv", folder], folder)
    return folder / "bin"


def run(command: list[str | Path], folder: Path, status: int = 0, **variables: str) -> str:
    """Run a command in a folder, with nothing of this process's environment that leads astray; returns its output.

    Raises: SystemExit with all that it said, where it ends otherwise than with `status`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in LEADS_ASTRAY}
    kept |= {"TVP_HOME": str(folder / "home"), "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    if not shutil.which(command[0]):
        sys.exit(f"{command[0]} is needed, and is not here.")
    done = subprocess.run(command, cwd=folder, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != status:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout if status == 0 else done.stdout + done.stderr


def expect(true: bool, otherwise: str) -> None:
    """Stop with a text where something is not as it must be."""
    if not true:
        sys.exit(f"Not as it must be: {otherwise}")


if __name__ == "__main__":
    main()
