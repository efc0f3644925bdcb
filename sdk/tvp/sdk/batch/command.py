"""The command `tvp batch`."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import click

from .._options import LENS, PROVIDERS, several_labels, structure

IN, FILE = click.Path(path_type=Path), click.Path(path_type=Path, dir_okay=False)
GOES_ON = "Stopped. The same command goes on where it stopped."


@click.command()
@click.argument("task")
@click.argument("source", type=IN)
@click.argument("output", type=FILE)
@click.option("-q", "--question", help="Question about rows that have none. Default: the task's own.")
@click.option("--rank", is_flag=True, help="Score the task's labels instead of writing answers.")
@click.option(
    "--label", "labels", multiple=True, callback=several_labels, help="Score this label. Repeat it for several."
)
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer, in tokens. Default: the task's.")
@structure
@click.option("--image-field", default="image", show_default=True, help="Field or column with the picture.")
@click.option("--question-field", default="question", show_default=True, help="Field or column with the question.")
@click.option("--allow-outside", is_flag=True, help="Read pictures outside of the input's folder too.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Pictures answered together.")
@LENS
@PROVIDERS
@click.option("--ray", "address", metavar="ADDRESS", help="Ray cluster to run on, such as 10.0.0.1:6379 or auto.")
@click.option(
    "--ray-cores", type=click.IntRange(1), default=1, show_default=True, help="Cores of each loaded task on Ray."
)
def batch(
    task: str,
    source: Path,
    output: Path,
    question: str | None,
    rank: bool,
    labels: tuple[str, ...],
    max_new_tokens: int | None,
    structure: dict[str, Any],
    image_field: str,
    question_field: str,
    allow_outside: bool,
    batch: int,
    lens: str | None,
    providers: str | dict[str, str],
    address: str | None,
    ray_cores: int,
) -> None:
    """Ask about many pictures, and write a row for each.

    TASK is a bundle: a folder, a name under $TVP_HOME/tasks or a .tvp file. SOURCE is a folder of pictures, or a .jsonl
    or .parquet file with a picture in each row. OUTPUT is a .jsonl or .parquet file with answers, scores and errors,
    which is there when all rows are done. Stopped or killed, the same command goes on, and each row is in OUTPUT once.

    Example: tvp batch runs/camera photos answers.jsonl -q "How many objects are there?"
    """
    from .asking import Asker, Asking
    from .journal import Journal
    from .rows import Rows

    options = structure if max_new_tokens is None else {"max_new_tokens": max_new_tokens, **structure}
    rank = rank or bool(labels)
    if rank and options:
        raise click.UsageError(
            "--rank and --label score labels and write nothing. Leave them out, or leave out "
            f"--{next(iter(options)).replace('choices', 'choice').replace('_', '-')}."
        )
    asking = Asking(task, question, rank, labels, options, providers, lens, batch)
    rows = Rows(source, image_field, question_field, allow_outside)
    about = {**_about(asking), "input": str(source.resolve()), "rows": rows.n, "digest of the input": rows.digest()}
    about |= {"image field": image_field, "question field": question_field, "allow outside": allow_outside}
    try:
        with closing(Journal(output, about)) as journal:
            if journal.done:
                click.echo(f"{len(journal.done)} of {rows.n} rows are answered already.", err=True)
            with _progress(rows.n, len(journal.done)) as show:
                missing = (row for row in rows if row.number not in journal.done)
                if address is None:
                    from .._runtime.stopping import stop_on_signals

                    stop_on_signals()
                    if len(journal.done) < rows.n:
                        with closing(Asker(asking)) as asker:
                            while some := [*islice(missing, batch)]:
                                show(journal.add(asker.answer(some)))
                else:
                    from .on_ray import answers

                    for results in answers(missing, asking, address, ray_cores):
                        show(journal.add(results))
            n_errors = journal.finish()
    except KeyboardInterrupt as error:
        error.add_note(GOES_ON)
        raise
    click.echo(f"{output}: {rows.n} rows, {n_errors} with an error.")
    if n_errors:
        sys.exit(1)


def _about(asking: Any) -> dict[str, Any]:
    """Return what decides the answers; where they are computed does not."""
    from .._store import read_manifests

    manifests = repr(read_manifests(asking.task))
    return {
        "format": 1,
        "task": asking.task,
        "digest of the task": hashlib.sha256(manifests.encode("utf-8", "surrogatepass")).hexdigest(),
        "question": asking.question,
        "rank": asking.rank,
        "labels": [*asking.labels],
        "options": dict(asking.options),
        "lens": asking.lens,
    }


@contextmanager
def _progress(n: int, n_done: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, and nothing elsewhere; gives a function that takes the number of further rows.

    click's own bar hides the cursor by signs that this command escapes.
    """
    began, before, shown = time.monotonic(), n_done, 0.0

    def show(n_more: int) -> None:
        nonlocal n_done, shown
        n_done += n_more
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - shown < 0.1 and n_done < n):
            return
        shown = now
        left = (now - began) / (n_done - before) * (n - n_done) if n_done > before else 0.0
        bar = "#" * (30 * n_done // n)
        text = f"[{bar:<30}] {n_done} of {n} rows" + f", {left:,.0f} s to go" * (n_done < n and left > 0)
        click.echo(f"\r{text:<79}", nl=False, err=True)

    show(0)
    try:
        yield show
    finally:
        if shown:
            click.echo(err=True)
