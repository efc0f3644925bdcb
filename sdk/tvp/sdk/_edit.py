"""Editing a bundle without a new export: its name, its question and its labels.

Neither the model nor the prompt changes. So the golden cases that ask what the bundle now asks stay as they are, and
so do those that a calibration is replayed with. Others are asked anew, by the bundle itself: that is sound only where
it still answers as it did, and so all cases are replayed first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._options import several_labels
from ._store import find
from .errors import BundleError, RequestError
from .formats import archive
from .formats._sealed import read_content, sealed
from .formats.golden import AnswerCase, GoldenCase, RankingCase, read_cases, write_cases
from .formats.integrity import sha256_of
from .formats.manifest import GOLDEN, TaskManifest, read_task_manifest
from .formats.temporary import replace_folder, temporary_folder

if TYPE_CHECKING:
    from ._task import Task

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Edited:
    """What an edit did.

    Attributes:
        before, after: the bundle's manifest.
        n_cases: number of golden cases.
        n_asked: of these, how many were asked anew.
    """

    before: TaskManifest
    after: TaskManifest
    n_cases: int
    n_asked: int


def edit(
    task: str | os.PathLike[str],
    *,
    name: str | None = None,
    question: str | None = None,
    labels: Sequence[str] | None = None,
) -> Edited:
    """Change the name, the question or the labels of a bundle. It is replaced whole, or not at all.

    Args:
        task: a folder, a name under $TVP_HOME/tasks, or a `.tvp` file.
        name: of the task. Default: as it is.
        question: of the task; '' for none. Default: as it is.
        labels: of the task. Default: as they are.

    Raises:
        BundleError: the bundle is missing or damaged, or is a link.
        CheckError: it does not answer here as it did at its export, and so cannot answer new golden cases.
        RequestError: nothing is to be changed; the bundle's calibration does not know the labels; or the model cannot
            read the question or a label.
    """
    if name is None and question is None and labels is None:
        raise RequestError("Nothing is to be changed. Give a new --question, a --label for each label, or a --name.")
    if name is not None and not name.strip():
        raise RequestError("The name is empty. Give a text.")
    path = Path(task)
    if path.suffix == ".tvp" and path.is_file():
        return _edit_archive(path, name, question, labels)
    folder = find(task)
    if folder.is_symlink():
        raise BundleError(f"{folder} is a link. Name the folder of the bundle, {folder.resolve()}.")
    return _edit_folder(folder, name, question, labels)


def _edit_archive(file: Path, name: str | None, question: str | None, labels: Sequence[str] | None) -> Edited:
    with temporary_folder(file.absolute()) as work:
        archive.unpack(file, work / "bundle")
        edited = _edit_folder(work / "bundle", name, question, labels)
        archive.pack(work / "bundle", work / "packed.tvp")
        os.replace(work / "packed.tvp", file)
    return edited


def _edit_folder(folder: Path, name: str | None, question: str | None, labels: Sequence[str] | None) -> Edited:
    before = read_task_manifest(folder / MANIFEST)
    after = replace(
        before,
        name=before.name if name is None else name.strip(),
        question=before.question if question is None else question.strip(),
        labels=before.labels if labels is None else tuple(labels),
    )
    if (before.question, before.labels) != (after.question, after.labels):
        _refuse_uncalibrated(after)
    cases = read_cases(folder)
    from ._load import load  # what runs models is not needed for help

    with temporary_folder(folder) as work:
        # The first task stays open until the edited one is checked: its base is neither hashed nor opened again.
        with load(folder, providers="cpu") as loaded:
            _refuse_unreadable(loaded, after, cases[0].question)
            edited = [case if _fits(case, after) else None for case in cases]
            n_asked = edited.count(None)
            if n_asked:
                loaded.check()
                cases = [new or _asked(loaded, old, after) for new, old in zip(edited, cases, strict=True)]
            _write(folder, work, before, after, cases if n_asked else None)
            with load(work, providers="cpu") as again:
                again.check()
                after = again.manifest
        replace_folder(work, folder)
    return Edited(before, after, len(cases), n_asked)


def _refuse_uncalibrated(manifest: TaskManifest) -> None:
    """Raise RequestError for labels whose scores the bundle's calibration does not know."""
    known = [entry for entry in manifest.calibration if sorted(entry.labels) == sorted(manifest.labels)]
    if not manifest.calibration or not manifest.labels:
        return
    if any(not manifest.question or entry.question == manifest.question for entry in known):
        return
    knows = "; ".join(f"{entry.question!r} with {', '.join(entry.labels)}" for entry in manifest.calibration[:4])
    raise RequestError(
        f"The bundle has a calibration, which does not know the question {manifest.question!r} with the labels "
        f"{', '.join(manifest.labels)}; it knows {knows}. Learn another one (tvp calibrate), and export with it "
        "(tvp export --calibration FILE)."
    )


def _refuse_unreadable(loaded: Task, manifest: TaskManifest, any_question: str) -> None:
    """Raise RequestError for a question or a label that the model cannot read."""
    from ._requests import Requests

    requests = Requests(loaded.model, manifest)
    if manifest.question:
        requests.question(None)
    if manifest.labels:
        requests.rank(manifest.question or any_question, None)


def _fits(case: GoldenCase, manifest: TaskManifest) -> bool:
    """Return whether a golden case asks what the bundle does, or what a calibration is replayed with."""
    if isinstance(case, AnswerCase):
        return case.question == (manifest.question or case.question)
    labels = sorted(case.labels)
    if any((entry.question, sorted(entry.labels)) == (case.question, labels) for entry in manifest.calibration):
        return True
    return case.question == (manifest.question or case.question) and labels == sorted(manifest.labels or labels)


def _asked(loaded: Task, case: GoldenCase, manifest: TaskManifest) -> GoldenCase:
    """Ask a golden case anew, about the same picture."""
    view = loaded.see(loaded.folder / "golden" / case.picture)
    question = manifest.question or case.question
    if isinstance(case, AnswerCase):
        answer = view.ask(question)
        scores = tuple(float(f"{value:.7g}") for value in answer.log_probabilities)
        return AnswerCase(case.picture, question, tuple(answer.tokens), answer.text, scores, anew=True)
    ranked = view.rank(question, labels=manifest.labels or case.labels)
    scores = tuple(float(f"{row.score:.7g}") for row in ranked)
    labels = tuple(row.label for row in ranked)
    return RankingCase(case.picture, question, labels, scores, labels[0], anew=True)


def _write(
    folder: Path, work: Path, before: TaskManifest, after: TaskManifest, cases: Sequence[GoldenCase] | None
) -> None:
    """Write the edited bundle to an empty folder. It shares all files that do not change."""
    shutil.copytree(folder, work, symlinks=True, dirs_exist_ok=True, copy_function=_share)
    files = {name: asdict(entry) for name, entry in before.files.items()}
    if cases is not None:
        (work / GOLDEN).unlink()  # it is the other folder's file too
        write_cases(work, cases, {})
        files[GOLDEN] = {"size": (work / GOLDEN).stat().st_size, "sha256": sha256_of(work / GOLDEN)}
    # Fields that a later version added stay as they are.
    content = read_content(folder / MANIFEST) | {"files": files}
    content.pop("task", None)  # of format 1, whose fields are beside it by now
    content |= {"name": after.name, "question": after.question, "labels": list(after.labels)}
    (work / MANIFEST).unlink()
    (work / MANIFEST).write_bytes(sealed(content))


def _share(file: str, to: str) -> str:
    try:
        os.link(file, to)
    except OSError:  # of another user, or on a disk without links
        shutil.copy2(file, to)
    return to


@click.command("edit")
@click.argument("task")
@click.option("--question", help="New question of the task; '' for none.")
@click.option(
    "--label", "labels", multiple=True, callback=several_labels, help="Label of the task. Repeat it for several."
)
@click.option("--name", help="New name of the task.")
def command(task: str, question: str | None, labels: tuple[str, ...], name: str | None) -> None:
    """Change the question, the labels or the name of a bundle, without a new export.

    The labels that are given take the place of all that were there. Model and prompt stay: a prompt that was learned
    for one question may not help another.

    Golden cases that ask another question, or rank other labels, are asked anew, once all of them have been replayed.
    Their answers are then the bundle's own, and not PyTorch's.

    TASK is a bundle: a folder, a name under $TVP_HOME/tasks or a .tvp file. It is replaced whole, or not at all.
    """
    done = edit(task, name=name, question=question, labels=labels or None)
    none = "(none of its own)"
    for row in ("name", "question", "labels"):
        was, now = (_text(getattr(manifest, row)) or none for manifest in (done.before, done.after))
        click.echo(f"{row:<13} {now}" + (f" (it was: {was})" if was != now else ""))
    if done.n_asked:
        click.echo(
            f"{done.n_asked} of {done.n_cases} golden cases did not fit, and were asked anew: their answers are the "
            "bundle's own, not PyTorch's"
        )
    else:
        click.echo(f"all {done.n_cases} golden cases still fit")


def _text(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
