"""Training a prompt: the loop over steps, and what it leaves behind."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from tvp.sdk.errors import DataError, RequestError

from . import families, tasks
from .config import TrainConfig, to_toml
from .data import Data, Subset, split
from .evaluate import accuracy
from .families import Family
from .files import write_whole
from .frame import Frame
from .losses import Guide
from .precision import dtype_of
from .prompt import Geometry, Prompt
from .runs import CHECKPOINT, Logs, Progress, claimed, load_checkpoint, save_checkpoint, save_pictures
from .step import CLEAN_BUDGET, Batch, Objective, load_batch
from .team import Team
from .update import Update

__all__ = ["TrainConfig", "TrainResult", "train"]

log = logging.getLogger("tvp.trainer")


@dataclass
class TrainResult:
    """The prompt and how it came about: one dictionary a step, one a validation.

    chosen: the validation of this very prompt: with early stopping the best, else the last.
    """

    prompt: Prompt
    steps: list[dict[str, float]]
    validations: list[dict[str, float]]
    chosen: dict[str, float]


def train(
    config: TrainConfig,
    folder: str | Path,
    sources: Sequence[Family] | None = None,
    data: Data | None = None,
    device: str = "cpu",
    resume: bool = True,
    quiet: bool | None = None,
    tensorboard: bool = False,
    compile: bool = False,
    offload: bool = False,
    skip_bad: bool = False,
    download: bool = False,
) -> TrainResult:
    """Train a prompt and write it, its configuration, logs and pictures to `folder`.

    prompt.safetensors, prompt.png, config.toml, log.jsonl, curves.png, frames/, checkpoint.pt; with
    tensorboard also tensorboard/.

    sources, data: given by a caller that has them loaded; otherwise opened from the config.
    device: `cpu`, `cuda`, …, or `auto` to spread models that no single device holds.
    resume: go on from the folder's checkpoint, or else start anew; a checkpoint of another
        configuration, of other weights or of other data is an error.
    quiet: no progress bar (default: none where the output is not a terminal).
    compile: run the models' vision encoders and the guide's through `torch.compile`, which pays off on long runs.
    offload: keep source models on the CPU but for the one whose turn it is, where memory is short.
    skip_bad: leave bad rows out, with a warning that lists them, instead of refusing the data.
    download: let torchvision fetch the task's data set, where it can.
    Killed at any moment, the run loses at most what came after its last checkpoint, and on a CPU
    the resumed run ends with the same bits. Started by `accelerate launch`, processes share each batch.
    """
    folder, team = Path(folder), Team()
    if (folder / "manifest.json").exists():  # its prompt.png would be replaced by this run's
        raise RequestError(f"{folder} is a task bundle. Choose another folder for the run.")
    task = tasks.get(config.task)
    device = str(team.device or device)
    dtype = dtype_of(config.precision, device)
    if offload:
        families.moved(torch.empty(0), device)  # before the models are loaded, which stay elsewhere
    if sources is None:
        place = "cpu" if offload else device
        sources = [families.load(name, place, dtype, config.canvas) for name in config.models]
    # Where models are spread over devices, the frame and the guide go where the first one starts.
    home = torch.device(device) if device != "auto" else sources[0].device
    if config.tse and config.guide == "zoo:guide" and not all(name.startswith("zoo:") for name in config.models):
        log.warning("TSE asks zoo:guide, a tiny model of scenes and CIFAR-10; --guide ViT-B-32@openai is the paper's.")
    guide = Guide(config.guide, home) if config.tse else None
    fit = task.fit if config.fit == "task" else config.fit
    geometry = Geometry(config.canvas, config.inner, fit, config.placement)
    if data is None:
        n = config.n_train + min(config.n_validation, config.n_train // 4)
        if download and not team.leads:
            team.wait()  # for the one that downloads
        data = tasks.open_usable(config.data, task, "train", n, config.seed, skip_bad, download)
        if download and team.leads:
            team.wait()
    train_data, validation = split(data, min(config.n_validation, len(data) // 5), config.seed)
    n_batches = len(train_data) // config.batch
    if not n_batches:
        raise DataError(
            f"{len(train_data)} training pictures do not fill a batch of {config.batch}; take a smaller one."
        )
    if config.batch < team.size:
        raise RequestError(f"A batch of {config.batch} pictures cannot be shared by {team.size} processes.")
    n_steps = config.steps or n_batches * config.epochs
    frame = Frame(geometry, config.pixel_range, config.rank, config.seed).to(home)
    update = Update(config.update, config.lr, n_steps, config.warm_up)
    identity = _identity(config, sources, data, guide)
    with claimed(folder) if team.leads else nullcontext():
        if not resume and team.leads:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        team.wait()
        progress = load_checkpoint(folder, identity, home) or Progress(values=frame.values)
        if compile:
            for source in sources:
                source.compile()
            if guide:
                guide.compile()
        # Clean features are worth remembering, in groups, only where pictures come round again.
        budget = CLEAN_BUDGET if n_steps > n_batches else 0
        objective = Objective(config, train_data, sources, guide, geometry, offload, budget)
        frame.values = progress.values
        if progress.step:
            update.restore(progress.update)
            objective.scale, objective.n_good = progress.scale, progress.n_good
            log.info("resumed at step %d of %d", progress.step, n_steps)

        def prompt() -> Prompt:
            with torch.no_grad():
                return Prompt(frame.pixels().detach(), geometry, config.pixel_range)

        # What fits into memory in training, with all that its gradient needs, does here.
        n_rows = min(256, -(-config.batch // config.accumulate) * config.questions)

        def validate() -> float:
            mine = Subset(validation, range(team.rank, len(validation), team.size))
            right = torch.zeros(2, dtype=torch.float64, device=home)
            for source in sources:
                if offload:
                    source.model.to(home)
                result = accuracy(source, mine, geometry, prompt(), task, n_rows)
                right += torch.tensor([result.right.sum(), result.n], device=home)
                if offload:
                    source.model.to("cpu")
            total = team.sum(right)
            return float(total[0] / total[1])

        def keep() -> None:
            progress.values, progress.update = frame.values, update.state()
            progress.scale, progress.n_good = objective.scale, objective.n_good
            if team.leads:
                save_checkpoint(folder, identity, progress)

        def judge() -> None:
            """Note a validation, and whether it is the best so far."""
            found = validate()
            progress.validations.append({"step": progress.step, "accuracy": found})
            if found > progress.best:
                progress.best, progress.best_values, progress.stale = found, [v.clone() for v in frame.values], 0
            else:
                progress.stale += 1
            if logs:
                logs.add(progress.validations[-1])
                save_pictures(folder, prompt(), progress)

        logs = Logs(folder, progress, tensorboard) if team.leads else None
        batches = _batches(config, train_data, geometry, progress.step, n_steps, team)
        hidden = True if not team.leads else quiet
        bar = tqdm(
            batches, initial=progress.step, total=n_steps, desc=f"prompt for {task.name}", disable=hidden, leave=False
        )
        for batch in bar:
            if config.patience and progress.stale >= config.patience:
                break  # a run that is taken up again after it had stopped early
            began = time.perf_counter()
            facts, gradients = objective(batch, frame, team)
            frame.values = update.apply(frame.values, gradients, progress.step)
            frame.settle()
            rate = update.rate(progress.step)
            progress.step += 1
            line = {"step": progress.step, "seconds": time.perf_counter() - began, "rate": rate, **facts}
            progress.steps.append(line)
            if logs:
                logs.add(line)
            shown = {name: f"{value:.3f}" for name, value in facts.items()}
            if progress.validations:
                shown["validation"] = f"{progress.validations[-1]['accuracy']:.1%}"
            bar.set_postfix(shown, refresh=False)
            last = progress.step == n_steps
            if last:  # before the validation, so that nothing that happens there loses the run
                keep()
            judged = last or (config.validate_every > 0 and progress.step % config.validate_every == 0)
            if judged:
                judge()
            if judged or progress.step % config.checkpoint_every == 0:
                keep()
            if config.patience and progress.stale >= config.patience:
                break
        if progress.step == n_steps and (not progress.validations or progress.validations[-1]["step"] < n_steps):
            judge()  # which the run that made the last step did not live to do
            keep()
        if logs:
            logs.close()
        chosen = progress.validations[-1]
        if config.patience and progress.best_values:
            frame.values = progress.best_values
            chosen = max(progress.validations, key=lambda line: line["accuracy"])  # of equals the first, as above
        result = TrainResult(prompt(), progress.steps, progress.validations, chosen)
        result.prompt.facts = {
            "method": config.method,
            "task": task.name,
            **identity,
            "steps": chosen["step"],
            "validation": [chosen],
            "versions": {name: version(name) for name in ("torch", "transformers", "open_clip_torch")},
        }
        if team.leads:
            write_whole(folder / "config.toml", to_toml(config).encode())
            result.prompt.save(folder / "prompt.safetensors")
        team.wait()
        return result


def _batches(
    config: TrainConfig, data: Data, geometry: Geometry, start: int, n_steps: int, team: Team
) -> Iterator[Batch]:
    """This process's share of every batch from step `start` on, read one step ahead while the step before runs."""
    n_batches = len(data) // config.batch

    @lru_cache(1)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([config.seed, epoch]).permutation(len(data))

    def load(step: int) -> Batch:
        epoch, place_in_epoch = divmod(step, n_batches)
        indices = order(epoch)[place_in_epoch * config.batch :][: config.batch].tolist()
        mine = indices[team.rank :: team.size]
        return load_batch(data, mine, geometry, config.questions, config.augment, [config.seed, epoch])

    if start >= n_steps:
        return
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(load, start)
        for step in range(start, n_steps):
            batch = following.result()
            if step + 1 < n_steps:
                following = reader.submit(load, step + 1)
            yield batch


def _identity(config: TrainConfig, sources: Sequence[Family], data: Data, guide: Guide | None) -> dict[str, Any]:
    """What a run is made of, by content: a name alone may stand for other weights or rows tomorrow."""
    total = hashlib.sha256()
    for i in range(0, len(data), max(1, len(data) // 16)):  # some samples, so that nothing large is read twice
        sample = data[i]
        total.update(repr((i, sample.picture.shape, sample.questions, sample.caption)).encode())
        total.update(sample.picture.tobytes())
    return {
        "config": asdict(config),
        "sources": {name: families.digest(name) for name in config.models},
        "asked": {
            name: repr((getattr(source, "layout", ""), source.pixel_format))
            for name, source in zip(config.models, sources, strict=True)
        },
        "guide": {config.guide: families.digest(config.guide)} if guide else {},
        "data": {"n": len(data), "fingerprint": total.hexdigest()},
    }
