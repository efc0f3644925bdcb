"""From a folder of pictures to a task file: what is in the folder, whether it can be used, and what is written."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvp.sdk.errors import DataError
from tvp.sdk.formats.picture_files import is_leftover
from tvp.sdk.formats.temporary import temporary_file

from .data import ClassFolder, Data, Jsonl, Pairs, Pictures, Row, has_pictures, row_of
from .data.folders import is_class_folder
from .data.labelled import few_answers
from .data.sample import SPLITS, fifth
from .data.sources import QUESTION
from .data.tables import read_csv, to_jsonl
from .files import write_whole
from .inspection import Findings, look_at, notes_on_answers
from .progress import working
from .signals import FEWEST
from .task_files import make_task, to_toml

TASK_FILE = "task.toml"
TABLES = (".csv", ".jsonl")
MOST_LISTED = 8  # bad rows in a message


@dataclass
class NewTask:
    """A task that is not written yet.

    Attributes:
        file: the task file.
        fields: what it will hold.
        others: the JSONL files to write beside it, with their text.
        said: what was found, in sentences.
        findings: what is wrong or looks odd.
        pictures: the folder of its pictures.
        example: one of its pictures.
    """

    file: Path
    fields: dict[str, Any]
    others: dict[Path, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    pictures: Path = Path()
    example: Path = Path()

    @property
    def is_lens(self) -> bool:
        """Whether it is learned without answers."""
        return "data" not in self.fields

    @property
    def slug(self) -> str:
        """Its name, as a part of a path that no shell changes."""
        return re.sub(r"[^\w.-]+", "-", str(self.fields["name"])).strip("-.") or "task"

    def write(self) -> list[Path]:
        """Write all files, the task file last; returns their paths."""
        files = {**self.others, self.file: to_toml(self.fields)}
        for file, text in files.items():
            write_whole(file, text.encode())
        return list(files)


def find_task(
    folder: Path,
    question: str,
    ask: Callable[[], str],
    labels: Sequence[str] = (),
    like: Path | None = None,
    clean: Path | None = None,
    camera: str = "",
    name: str = "",
    skip_bad: bool = False,
    allow_outside: bool = False,
    output: Path | None = None,
) -> NewTask:
    """Look at a folder of pictures, or at a CSV or JSONL file, and return the task that it makes.

    Args:
        folder: the folder, or the file.
        question: about every picture; '' where `ask` is to be asked for it, if the data needs one.
        ask: returns the question.
        labels: answers to choose from. Default: the classes, or the answers of the file where they are few.
        like: folder of good pictures of other content, for a lens.
        clean: folder of the same pictures, clean, for a lens.
        camera: that the pictures are seen through.
        name: of the task. Default: the folder's.
        skip_bad: leave bad rows and pictures out. Default: they are an error.
        allow_outside: links and rows may lead out of the folder. Default False.
        output: the task file. Default: task.toml in the folder, or the name of the file that was given, with .toml.

    Raises:
        DataError: there is nothing to make a task of, something is bad, or a file would be overwritten.
    """
    if not folder.exists():
        raise DataError(f"There is no folder {folder}. Name a folder of pictures, or a CSV or JSONL file.")
    place = folder if folder.is_dir() else folder.parent
    file = output or (place / TASK_FILE if folder.is_dir() else folder.with_suffix(".toml"))
    _refuse_to_overwrite(file)
    if not file.absolute().parent.is_dir():
        raise DataError(f"{file} cannot be written, because there is no folder {file.parent}.")
    name = name or (folder.resolve().name if folder.is_dir() else folder.stem)
    task = NewTask(file, {"name": name}, pictures=place)
    if like is not None or clean is not None:
        _lens(task, folder, like, clean, skip_bad, allow_outside)
        return task
    tables = _tables(folder)
    if tables:
        _from_tables(task, tables, question, ask, labels, skip_bad)
    elif is_class_folder(folder):
        task.fields |= {"question": question or ask(), "data": _seen_from(file, folder)}
    else:
        raise DataError(_nothing(folder))
    task.fields |= {"camera": camera, "labels": list(labels or task.fields.get("labels", ()))}
    _check(task, skip_bad, allow_outside)
    return task


def _tables(folder: Path) -> dict[str, Path]:
    """Return the CSV or JSONL files that hold the rows, by split; one file is `train`, and none is no file."""
    if folder.is_file():
        if folder.suffix.lower() not in TABLES:
            raise DataError(f"{folder} is neither a folder nor a CSV or JSONL file.")
        return {"train": folder}
    found = sorted(
        f for f in folder.iterdir() if f.suffix.lower() in TABLES and f.is_file() and not is_leftover(f.name)
    )
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    splits = {split_of[f.stem.lower()]: f for f in found if f.stem.lower() in split_of}
    if len(found) == 1:
        return {"train": found[0]}
    if len(found) == len(splits) == 2:
        return splits
    if found:
        raise DataError(
            f"{folder} holds {len(found)} files that may be the rows: {', '.join(f.name for f in found)}. "
            f"Name the one: tvp init {found[0]}"
        )
    return {}


def _from_tables(
    task: NewTask, tables: dict[str, Path], question: str, ask: Callable[[], str], labels: Sequence[str], skip_bad: bool
) -> None:
    """Take the rows of CSV or JSONL files; a CSV file gets a JSONL file beside it."""
    for split, table in tables.items():
        data = table
        if table.suffix.lower() == ".csv":
            data = table.with_suffix(".jsonl")
            _refuse_to_overwrite(data)
            with table.open("rb") as stream:
                first = stream.readline(10_000).decode("utf-8", "replace").lower()
            if "question" not in first:
                question = question or ask()
            bad: list[str] = []
            rows = read_csv(table, question, labels, bad)
            task.findings.bad += bad
            _add_labels(rows)
            task.others[data] = to_jsonl(rows)
        task.fields["data" if split == "train" else "test"] = _seen_from(task.file, data)
    if question:
        task.fields["question"] = question


def _add_labels(rows: list[dict[str, object]]) -> None:
    """Give the rows of a table with several questions the labels of their question, where its answers are few."""
    answers: dict[object, Counter[str]] = {}
    for row in rows:
        answers.setdefault(row["question"], Counter())[str(row["answer"])] += 1
    for row in rows if len(answers) > 1 else ():
        if "labels" not in row and (labels := few_answers(answers[row["question"]])):
            row["labels"] = list(labels)


def _check(task: NewTask, skip_bad: bool, allow_outside: bool) -> None:
    """Open the data as training will, read every picture, and note what is wrong."""
    bad = task.findings.bad
    with working("reading the data"):
        parts = _open(task, bad, allow_outside)
    everything = [row for data in parts.values() for row in _rows_of(data)]
    found = look_at(everything)
    bad[:] = dict.fromkeys(bad + found.bad)  # both splits of a folder name the same files
    _refuse_bad(bad, skip_bad)
    if isinstance(parts["train"], Jsonl) and "test" not in parts:
        parts = {split: fifth(parts["train"], split) for split in ("train", "test")}
    rows = {
        split: [row for row in _rows_of(data) if row.picture not in found.unreadable] for split, data in parts.items()
    }
    task.findings.n_pictures = found.n_pictures
    questions = Counter(question.text for row in everything for question in row.questions)
    if len(questions) == 1:
        task.fields["question"] = next(iter(questions))
    if not task.fields["labels"]:
        task.fields["labels"] = list(_labels(parts, everything, len(questions)))
    labels = task.fields["labels"]
    task.findings.notes += [*found.notes, *notes_on_answers(everything, labels)]
    n_train, n_test = (len({row.picture for row in rows.get(split, [])}) for split in ("train", "test"))
    one = f": {next(iter(questions))}" if len(questions) == 1 else f"s: {len(questions)} different ones"
    task.said += [
        f"{found.n_pictures} pictures. Question{one}",
        f"Labels: {', '.join(labels)}." if labels else "No labels: the answers are many, and are written in free text.",
        f"{n_test} pictures are for the test, {n_train} to learn from. {_how(task)}",
    ]
    task.example = Path(rows["test"][0].picture if rows.get("test") else everything[0].picture)


def _open(task: NewTask, bad: list[str], allow_outside: bool) -> dict[str, Data]:
    """Open the data, by split; of a JSONL file without a test file, all rows are `train`."""
    base = task.file.parent
    made = make_task(task.file, {key: value for key, value in task.fields.items() if value})
    source, question = base / task.fields["data"], made.question or QUESTION
    if source.is_dir():
        options: dict[str, Any] = {"skip_bad": bad, "allow_outside": allow_outside}
        train = ClassFolder(source, "train", question, labels=made.labels, **options)
        try:
            return {"train": train, "test": ClassFolder(source, "test", question, labels=made.labels, **options)}
        except DataError as error:  # a class of one picture each, or only one split
            task.findings.notes.append(f"there is no picture for the test: {error}")
            return {"train": train}
    opened = {}
    for key, split in (("data", "train"), ("test", "test")):
        if key in task.fields:
            opened[split] = _jsonl(base / task.fields[key], task.others, bad, made.labels, allow_outside)
    return opened


def _rows_of(data: Data) -> list[Row]:
    return [row for i in range(len(data)) if (row := row_of(data, i))]


def _jsonl(file: Path, others: dict[Path, str], bad: list[str], labels: Sequence[str], allow_outside: bool) -> Data:
    text = next((text for place, text in others.items() if place.absolute() == file.absolute()), None)
    if text is None:
        return Jsonl(file, bad, labels, allow_outside=allow_outside)
    with temporary_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
        found: list[str] = []
        try:
            return Jsonl(temporary, found, labels, allow_outside=allow_outside)
        except DataError as error:
            raise DataError(str(error).replace(str(temporary), str(file))) from error
        finally:
            bad += [message.replace(str(temporary), str(file)) for message in found]


def _labels(parts: dict[str, Data], rows: Sequence[Row], n_questions: int) -> tuple[str, ...]:
    """Return the labels of a task: its classes, or its answers where one question has few."""
    names = getattr(parts["train"], "names", ())
    own = any(question.labels for row in rows for question in row.questions)
    if names or own or n_questions != 1:
        return tuple(names)  # rows with labels of their own keep them
    return few_answers(Counter(question.answer for row in rows for question in row.questions))


def _how(task: NewTask) -> str:
    if "test" in task.fields:
        return f"The test is {task.fields['test']}."
    return (
        "A fifth of each answer's pictures is set aside, the same ones every time: tvp train -t never sees them, and "
        "tvp eval -t measures on them."
    )


def _lens(
    task: NewTask, folder: Path, like: Path | None, clean: Path | None, skip_bad: bool, allow_outside: bool
) -> None:
    """Make a task that is learned from two folders of pictures, without answers."""
    bad: list[str] = []
    options: dict[str, Any] = {"allow_outside": allow_outside}
    if clean is not None:
        pairs = Pairs(folder, clean, bad, **options)
        task.fields["pairs"] = [_seen_from(task.file, folder), _seen_from(task.file, clean)]
        rows = [Row(str(file), str(file), ()) for pair in pairs.files for file in pair]
        counts = {f"pairs of pictures in {folder} and {clean}": len(pairs)}
        if pairs.alone:
            shown = ", ".join(pairs.alone[:3])
            task.findings.notes.append(f"{len(pairs.alone)} pictures are in one of the folders only, such as {shown}.")
    else:
        assert like is not None
        ours, theirs = Pictures(folder, bad, **options), Pictures(like, bad, **options)
        task.fields |= {"pictures": _seen_from(task.file, folder), "like": _seen_from(task.file, like)}
        rows = [Row(str(file), str(file), ()) for file in (*ours.files, *theirs.files)]
        counts = {f"pictures in {folder}": len(ours), f"good pictures in {like}": len(theirs)}
        if shared := set(ours.files) & set(theirs.files):
            raise DataError(
                f"{len(shared)} pictures are in both folders, such as {min(shared)}. Keep the folders apart."
            )
    found = look_at(rows)
    _refuse_bad(bad + found.bad, skip_bad)
    for what, n in counts.items():
        if n < FEWEST:
            raise DataError(f"There are {n} {what}; a lens needs at least {FEWEST}. Give more.")
    task.findings.bad = bad + found.bad
    task.said.append(
        f"{' and '.join(f'{n} {what}' for what, n in counts.items())}. No question and no answer is needed."
    )
    if clean is None:
        task.findings.notes += found.notes
    task.example = Path(rows[0].picture)


def _refuse_bad(bad: Sequence[str], skip_bad: bool) -> None:
    if bad and not skip_bad:
        listed = "\n  ".join(bad[:MOST_LISTED])
        more = f"\n  … and {len(bad) - MOST_LISTED} more" if len(bad) > MOST_LISTED else ""
        raise DataError(
            f"{len(bad)} row(s) or picture(s) cannot be used:\n  {listed}{more}\n"
            "Mend them, or leave them out with --skip-bad. Nothing was written."
        )


def _refuse_to_overwrite(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise DataError(
            f"{file} is there already, and is not overwritten. Use it, delete it, or name another task file with "
            "--output."
            if file.suffix == ".toml"
            else f"{file} is there already, and is not overwritten. To use it: tvp init {file}. Else move it away."
        )


def _seen_from(file: Path, place: Path) -> str:
    """A path as the task file names it."""
    return Path(os.path.relpath(place.absolute(), file.absolute().parent)).as_posix()


def _nothing(folder: Path) -> str:
    wanted = (
        "It needs a folder of pictures for each answer, named like it (two or more); or a CSV or JSONL file with "
        "image, question and answer in each row."
    )
    if has_pictures(folder):
        return (
            f"{folder} holds pictures, and nothing that says what they show. {wanted} For a lens, which needs no "
            "answers, name good pictures with --like, or the same pictures, clean, with --clean."
        )
    return f"{folder} holds no pictures. {wanted}"
