"""Accuracy of an exported bundle, asked through the sdk as on a device."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tvp import sdk
from tvp.trainer.data import Data, picture_of
from tvp.trainer.evaluate import Accuracy, Asked, judge
from tvp.trainer.families import Family
from tvp.trainer.progress import bar
from tvp.trainer.prompt import Prompt
from tvp.trainer.task_definition import TaskDefinition

from .bundle import export


@contextmanager
def asked_bundle(
    model: str, family: Family, prompt: Prompt, task: TaskDefinition, data: Data, *, quiet: bool = True
) -> Iterator[Callable[[Data], Asked]]:
    """Export a model with a prompt to a temporary folder, and give a function that asks the bundle.

    Args:
        model: a folder, a hub id or `zoo:NAME`.
        family: the same model, loaded. If it is on a GPU, the bundle may run there too.
        prompt: the prompt to bake in.
        task: its name, question and labels go into the bundle.
        data: pictures and questions for the parity gate.
        quiet: whether to hide the progress bar. Default True.

    Returns:
        A context. Its function takes a data set and returns the answers. The bundle is deleted at the end.

    Raises:
        ModelError: a model of this family cannot be exported.
        CheckError: the bundle does not answer as PyTorch does.
    """
    on_cpu = family.device.type == "cpu"
    with tempfile.TemporaryDirectory(prefix="tvp-eval-") as folder:
        bundle = Path(folder) / "bundle"
        # Exporting and the parity gate run on the CPU. A model on a GPU is loaded again.
        export(model, task, bundle, prompt=prompt, data=data, family=family if on_cpu else None, n_moment_pictures=0)
        with sdk.load(bundle, providers="cpu" if on_cpu else "auto") as loaded:
            yield lambda asked: ask(loaded, asked, task, quiet)


def accuracy(loaded: sdk.Task, data: Data, task: TaskDefinition, quiet: bool = True) -> Accuracy:
    """Ask a bundle every question of a data set and judge its answers; the arguments are those of `ask`."""
    return judge(ask(loaded, data, task, quiet), task.match)


def ask(loaded: sdk.Task, data: Data, task: TaskDefinition, quiet: bool = True) -> Asked:
    """Ask a bundle every question of a data set, as `tvp.trainer.evaluate.ask` does.

    Args:
        loaded: the bundle.
        data: pictures with questions and expected answers.
        task: a free task takes the written answers; otherwise, a question's labels are ranked.
        quiet: whether to hide the progress bar. Default True.

    Returns:
        Each question with its answer.
    """
    generates = loaded.kind != "contrastive"
    said = Asked()
    picture = None
    for i in bar(range(len(data)), "asking the bundle", quiet=quiet):
        sample = data[i]
        if sample.picture is not picture:  # further rows about one picture have the very same array
            picture = sample.picture
            view = loaded.see(picture)  # encoded once, asked many times
        for question in sample.questions:
            row = None
            if question.labels and not (task.free and generates):
                ranked = {label.label: label.score for label in view.rank(question.text, labels=question.labels)}
                row = np.array([ranked[label] for label in question.labels], np.float32)
            said.questions.append(question)
            said.answers.append(str(view.ask(question.text)) if row is None else question.labels[int(row.argmax())])
            said.scores.append(row)
            said.pictures.append(picture_of(data, i))
    return said
