"""Many pictures at a time: each row is answered once, as `ask` would, whatever ends the process."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tvp import sdk
from tvp.sdk.batch import on_ray
from tvp.sdk.batch.asking import Asking
from tvp.sdk.batch.command import _progress
from tvp.sdk.batch.journal import Journal
from tvp.sdk.batch.rows import Row, Rows
from tvp.sdk.cli import cli
from tvp.sdk.errors import DataError, ProviderError, RequestError, TvpError

pa = pytest.importorskip("pyarrow", reason="the extra 'batch' is not installed: pip install '.[dev]'")
pq = pytest.importorskip("pyarrow.parquet")

TASK = str(Path(__file__).parents[1] / "goldens" / "format-2" / "llava_next.tvp")
QUESTION = "What?"


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def task():
    with sdk.load(TASK) as loaded:
        yield loaded


@pytest.fixture
def photos(tmp_path):
    """A folder with five pictures, one of them damaged, and what is no picture."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.PNG", "inner/c.png", "d.png"]):
        (folder / name).write_bytes(picture(number))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    (folder / ".hidden.png").write_bytes(b"nor this")
    return folder


NAMES = ["a.PNG", "b.png", "broken.png", "d.png", "inner/c.png"]


def run(*arguments):
    result = CliRunner().invoke(cli, ["batch", TASK, *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_folder_becomes_a_row_for_each_picture(photos, tmp_path, task):
    out = tmp_path / "out.jsonl"
    result = run(photos, out, "-q", QUESTION, "--max-new-tokens", 6, "--batch", 2)
    assert result.exit_code == 1  # not all of it succeeded
    assert "5 rows, 1 with an error" in result.output
    rows = lines(out)
    assert [(row["row"], row["image"]) for row in rows] == list(enumerate(NAMES))
    for row in rows:
        if row["image"] == "broken.png":
            assert "not a picture" in row["error"]
            assert "of 2" not in row["error"]
            continue
        expected = task.ask(photos / row["image"], QUESTION, max_new_tokens=6)
        assert (row["text"], row["tokens"], row["finish"]) == (expected.text, [*expected.tokens], expected.finish)
        assert row["score"] == pytest.approx(np.mean(expected.log_probabilities), abs=1e-4)
        assert row["unlikeness"] == expected.unlikeness
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out.jsonl"]


def test_rows_of_a_file_have_their_own_questions(photos, tmp_path, task):
    source, out = photos / "rows.jsonl", tmp_path / "out.parquet"
    (tmp_path / "outside.png").write_bytes(picture(9))
    rows = [
        {"image": "b.png", "question": "How many objects are there?"}, {"image": "b.png"}, {"image": "gone.png"},
        {"image": "../outside.png"}, {"image": 3}, {"image": "d.png", "question": 7},
    ]  # fmt: skip
    source.write_text("\n\n".join(map(json.dumps, rows)) + "\n[1]\n{ no json\n")
    assert run(source, out, "-q", QUESTION, "--max-new-tokens", 4).exit_code == 1
    found = pq.read_table(out).to_pylist()
    assert [row["row"] for row in found] == [*range(8)]
    assert found[0]["text"] == task.ask(photos / "b.png", "How many objects are there?", max_new_tokens=4).text
    assert found[1]["text"] == task.ask(photos / "b.png", QUESTION, max_new_tokens=4).text
    assert [row["error"] is None for row in found] == [True, True] + [False] * 6
    told = [
        "does not exist|cannot be read|no such",
        "outside of",
        "no picture",
        "no text",
        "Line 12 .* no JSON",
        "Line 13",
    ]
    for row, says in zip(found[2:], told, strict=True):
        assert re.search(says, row["error"], re.I), row
    inside = tmp_path / "allowed.jsonl"
    assert run(source, inside, "-q", QUESTION, "--max-new-tokens", 4, "--allow-outside").exit_code == 1
    assert lines(inside)[3]["text"]


@pytest.mark.parametrize("as_column", [lambda n, data: data, lambda n, data: {"bytes": data, "path": f"{n}.png"}])
def test_pictures_in_parquet(tmp_path, task, as_column):
    source, out = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    pq.write_table(pa.table({"photo": [as_column(n, picture(n)) for n in range(3)], "other": [1, 2, 3]}), source)
    with pytest.raises(DataError, match="no column 'image'; it has photo, other"):
        run(source, tmp_path / "x.jsonl", "-q", QUESTION)
    result = run(source, out, "-q", QUESTION, "--max-new-tokens", 4, "--image-field", "photo")
    assert result.exit_code == 0, result.output
    expected = [task.ask(picture(n), QUESTION, max_new_tokens=4).text for n in range(3)]
    assert [row["text"] for row in lines(out)] == expected


def test_a_link_that_leads_out_of_the_folder_is_not_followed(photos, tmp_path):
    (tmp_path / "outside.png").write_bytes(picture(9))
    (photos / "link.png").symlink_to(tmp_path / "outside.png")
    wrong = {row.name: row.wrong for row in Rows(photos)}
    assert [name for name, told in wrong.items() if told] == ["link.png"]
    assert not any(row.wrong for row in Rows(photos, allow_outside=True))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_odd_names_and_texts_are_rows_like_others(photos, tmp_path, suffix):
    source, out = photos / "rows.jsonl", tmp_path / f"out.{suffix}"
    odd = ['{"image": "\\ud800.png"}', '{"image": "a\\u0000b.png"}', '{"image": "b.png", "question": "\\ud800"}']
    source.write_text("\n".join([*odd, '{"image": "é.png"}', "[" * 9999, "9" * 9999, '{"image": "inner"}']))
    os.mkfifo(photos / "é.png")
    run(source, out, "-q", QUESTION)
    rows = lines(out) if suffix == "jsonl" else pq.read_table(out).to_pylist()
    assert [row["row"] for row in rows] == [*range(7)]
    assert all(row["error"] for row in rows), rows


def test_labels_are_ranked_and_structures_followed(photos, tmp_path, task):
    run(photos, tmp_path / "ranked.jsonl", "-q", QUESTION, "--label", "red", "--label", "blue")
    for row in lines(tmp_path / "ranked.jsonl"):
        if "error" not in row:
            expected = task.rank(photos / row["image"], QUESTION, labels=["red", "blue"])
            assert [r["label"] for r in row["ranked"]] == [r.label for r in expected]
            assert (row["text"], row["score"]) == (expected[0].label, pytest.approx(expected[0].score, abs=1e-4))
    pytest.importorskip("llguidance", reason="the extra 'structured' is not installed: pip install '.[dev]'")
    run(photos, tmp_path / "chosen.jsonl", "-q", QUESTION, "--choice", "red", "--choice", "blue")
    assert {row.get("text") for row in lines(tmp_path / "chosen.jsonl")} <= {"red", "blue", None}
    run(photos, tmp_path / "early.jsonl", "-q", QUESTION, "--regex", "[0-9]{9}", "--max-new-tokens", 2)
    assert all("error" in row for row in lines(tmp_path / "early.jsonl"))
    assert run(photos, tmp_path / "x.jsonl", "--rank", "--regex", "a").exit_code == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from tvp.sdk.batch import asking, journal
asked, n = Path(sys.argv.pop()), int(sys.argv.pop())
real = asking.Asker.answer
def answer(self, rows):
    with open(asked, "a") as file:
        file.write("".join(f"{row.number}\\n" for row in rows))
    return real(self, rows)
asking.Asker.answer = answer
class Torn:
    '''A file whose n-th write is cut off by the end of the process.'''
    def __init__(self, file): self.file, self.left = file, n
    def __getattr__(self, name): return getattr(self.file, name)
    def __iter__(self): return iter(self.file)
    def fileno(self): return self.file.fileno()
    def write(self, data):
        self.left -= 1
        if not self.left:
            self.file.write(data[: len(data) * 2 // 3])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)
opened = journal.Journal._read
def read(self):
    opened(self)
    self._file = Torn(self._file)
journal.Journal._read = read
from tvp.sdk.cli import main
main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_batch_that_is_killed_in_the_middle_of_a_write_goes_on(tmp_path, suffix):
    folder, out, asked = tmp_path / "photos", tmp_path / f"out.{suffix}", tmp_path / "asked"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(picture(number))
    command = ["tvp", "batch", TASK, str(folder), str(out), "-q", QUESTION, "--max-new-tokens", "4", "--batch", "3"]
    codes = []
    for nth in (2, 2, 99):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *command[1:], str(nth), str(asked)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        codes.append(done.returncode)
        assert not out.exists() or nth == 99
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0], done.stderr
    rows = lines(out) if suffix == "jsonl" else pq.read_table(out).to_pylist()
    assert [row["row"] for row in rows] == [*range(12)]
    assert all(row["text"] is not None and row.get("error") is None for row in rows)
    # The killed write tore one row in two, and lost the one behind it; only those are asked again.
    numbers = [int(line) for line in asked.read_text().split()]
    assert sorted(set(numbers)) == [*range(12)]
    assert len(numbers) <= 12 + 2 * 2


def results(*numbers):
    return [{"row": n, "image": f"{n}.png", "text": "é\u2028" * n} for n in numbers]


def test_a_journal_may_be_cut_off_at_any_byte(tmp_path):
    whole = tmp_path / "whole.jsonl"
    first = Journal(whole, {"question": "What?"})
    first.add(results(0, 2))
    first.add(results(1))
    first.close()
    text = (first.folder / "rows.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(text) if byte == ord("\n")]
    for cut in range(len(text) + 1):
        (first.folder / "rows.jsonl").write_bytes(text[:cut])
        journal = Journal(whole, {"question": "What?"})
        n = sum(end <= cut for end in ends)
        assert sorted(journal.done) == sorted([0, 2, 1][:n])
        assert journal.add(results(0, 1, 2, 3)) == 4 - n
        journal.close()
    last = Journal(whole, {"question": "What?"})
    assert last.add([{**row, "text": "said later"} for row in results(3, 1)]) == 0
    assert last.finish() == 0
    assert lines(whole) == results(0, 1, 2, 3)
    assert not last.folder.exists()


def test_an_unfinished_batch_goes_on_with_the_same_options_only(tmp_path):
    out = tmp_path / "out.jsonl"
    Journal(out, {"question": "What?", "rows": 3}).close()
    with pytest.raises(RequestError, match='its question is "What\\?", and now it is "Who\\?"'):
        Journal(out, {"question": "Who?", "rows": 3})
    held = Journal(out, {"question": "What?", "rows": 3})
    with pytest.raises(RequestError, match="Another process writes"):
        Journal(out, {"question": "What?", "rows": 3})
    held.close()
    (held.folder / "about.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Journal(out, {})
    out.write_text("")
    with pytest.raises(RequestError, match="there already, and whole"):
        Journal(out, {})  # of a process that was killed before it removed its journal
    assert not held.folder.exists()
    with pytest.raises(RequestError, match="there already"):
        Journal(out, {})
    for wrong, told in (("out.csv", r"\.jsonl or \.parquet"), ("no/such/out.jsonl", "no folder")):
        with pytest.raises(RequestError, match=told):
            Journal(tmp_path / wrong, {})


def test_inputs_that_are_none_are_told_so(tmp_path):
    for wrong, told in (("gone", "There is no"), ("x.csv", "neither"), ("empty", "holds no picture")):
        (tmp_path / "x.csv").touch()
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=told):
            Rows(tmp_path / wrong)
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        _ = Rows(tmp_path / "x.parquet").n


def test_without_ray_the_error_names_the_extra(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"--ray needs .*ray.*tvp-edge\[ray\]"):
        run(photos, tmp_path / "out.jsonl", "-q", QUESTION, "--ray", "auto")


def test_a_bar_is_shown_on_a_terminal_alone(monkeypatch, capsys):
    with _progress(4, 1) as show:
        show(1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with _progress(4, 1) as show:
        show(1)
        show(2)
    first, *_, last = capsys.readouterr().err.removeprefix("\r").split("\r")
    assert first.startswith(f"[{'#' * 7}{' ' * 23}] 1 of 4 rows")
    assert last.strip() == f"[{'#' * 30}] 4 of 4 rows"


def test_a_wrong_option_is_told_before_the_first_row(photos, tmp_path):
    with pytest.raises(RequestError, match="regex cannot be followed"):
        run(photos, tmp_path / "out.jsonl", "-q", QUESTION, "--regex", "(")


def test_an_interrupted_batch_says_that_it_goes_on(photos, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tvp.sdk.batch.asking.Asker.answer", interrupted)
        result = CliRunner().invoke(cli, ["batch", TASK, str(photos), str(tmp_path / "out.jsonl"), "-q", QUESTION])
    assert result.exit_code == 130
    assert "The same command goes on where it stopped" in result.output
    assert not os.path.exists(tmp_path / "out.jsonl")


def remote(asking, rows):
    """What a process of Ray's answers; it needs no Ray."""
    table = {"row": [json.dumps(on_ray._as_json(row)) for row in rows]}
    table["data"] = [row.picture if isinstance(row.picture, bytes) else b"" for row in rows]
    answered = on_ray.RemoteAsker(json.dumps(asdict(asking)), 1)(pa.table(table))
    return [json.loads(text) for text in answered.column("answer").to_pylist()]


def test_rows_travel_to_a_process_of_ray(photos, task):
    rows = [
        Row(4, "x", picture(0)), Row(7, "é.png", str(photos / "b.png"), "Who?"), Row(9, "", wrong="No picture."),
        Row(11, "b", b"no picture"),
    ]  # fmt: skip
    found = remote(Asking(TASK, QUESTION, options={"max_new_tokens": 4}), rows)
    assert [(row["row"], row["image"], row["question"]) for row in found] == [
        (4, "x", None), (7, "é.png", "Who?"), (9, "", None), (11, "b", None)
    ]  # fmt: skip
    assert found[0]["text"] == task.ask(picture(0), QUESTION, max_new_tokens=4).text
    assert found[1]["text"] == task.ask(photos / "b.png", "Who?", max_new_tokens=4).text
    assert [row.get("error", "")[:10] for row in found] == ["", "", "No picture", "The image "]
    (lost,) = remote(Asking("no such task"), rows[:1])
    assert "no such task" in lost["fatal"]
    with pytest.raises(TvpError, match="no such task"):
        on_ray._raise_told([lost])


def test_what_ray_loses_is_asked_again(monkeypatch):
    class RayError(Exception):
        pass

    ray, asked = SimpleNamespace(exceptions=SimpleNamespace(RayError=RayError)), []

    def fails(ray, rows, asking, n_cores):
        asked.append([row.number for row in rows])
        if len(rows) > 2:
            yield [{"row": rows[0].number}]
            raise RayError("a node is gone")
        if len(asked) > 9:
            yield [{"row": row.number} for row in rows]
        raise RayError("again")

    monkeypatch.setattr(on_ray, "_run", fails)

    def answered(n):
        rows = {number: Row(number, "") for number in range(n)}
        return [result["row"] for results in on_ray._answer_window(ray, rows, Asking("x"), 1) for result in results]

    with pytest.raises(ProviderError, match="failed 3 times in a row"):
        answered(4)
    assert asked == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [2, 3], [2, 3]]
    asked += [[]] * 9
    assert answered(4) == [0, 1, 2, 3]
    monkeypatch.setattr(on_ray, "_run", lambda *_: iter(()))
    with pytest.raises(ProviderError, match="no answer to 2 rows"):
        answered(2)
