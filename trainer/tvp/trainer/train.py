"""Training a prompt: the loop, its configuration and its checkpoints."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from tvp.sdk.errors import DataError, RequestError

from . import families, tasks
from .data import Data, split
from .evaluate import accuracy
from .families import Family
from .losses import Guide, feature_consistency
from .prompt import Geometry, PixelRange, Prompt, write_whole
from .update import Update, UpdateRule

log = logging.getLogger("tvp.trainer")

CLEAN_BUDGET = 2 * 2**30  # bytes of clean features kept in memory, all source models together


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what prompt comes out.

    models: source models, by folder, hub id or `zoo:NAME`; their losses are averaged.
    task: name of the task; data: `scenes`, a parquet folder or a JSONL file ('': the task's own).
    guide: the CLIP model of TSE; needed where tse is not 0.
    canvas, inner: sides in px. pixel_range: `free` or `image`.
    fca, tse: weights of the two losses (the paper's CIFAR-10 run: 0.005 and 0.001).
    update, lr: the rule and its rate: `normalized` (lr is the length of a step over the whole
        frame; the paper uses 10) or `adam` (lr is per pixel).
    batch: pictures a step. questions: questions a picture, where the data has several.
    steps: number of steps; 0 means one epoch.
    n_train: scenes to draw. n_validation: pictures split off from training data, at most a fifth of it.
    validate_every: steps between validations, 0 for only at the end.
    checkpoint_every: steps between checkpoints.
    """

    models: tuple[str, ...]
    task: str = "bad-camera"
    data: str = ""
    guide: str = "zoo:guide"
    canvas: int = 224
    inner: int = 164
    pixel_range: PixelRange = "free"
    fca: float = 0.005
    tse: float = 0.001
    update: UpdateRule = "normalized"
    lr: float = 10.0
    batch: int = 16
    questions: int = 4
    steps: int = 0
    warm_up: int = 0
    n_train: int = 4096
    n_validation: int = 256
    validate_every: int = 0
    checkpoint_every: int = 50
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.models:
            raise RequestError("Name at least one source model with --model.")
        for name in ("batch", "questions", "checkpoint_every", "n_train", "n_validation"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("fca", "tse", "lr", "steps", "warm_up", "validate_every"):
            if not getattr(self, name) >= 0:
                raise RequestError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if self.pixel_range not in ("free", "image"):
            raise RequestError(f"The pixel range {self.pixel_range!r} is unknown; it is 'free' or 'image'.")
        if self.update not in ("normalized", "adam"):
            raise RequestError(f"The update {self.update!r} is unknown; it is 'normalized' or 'adam'.")
        if self.seed < 0:
            raise RequestError(f"seed is {self.seed}; it must not be negative.")
        if Geometry(self.canvas, self.inner).edge == 0:
            raise RequestError(f"An inner size of {self.inner} px leaves no frame to train on {self.canvas} px.")


@dataclass
class TrainResult:
    """The prompt and how it came about: one dictionary a step, one a validation."""

    prompt: Prompt
    steps: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)


class CleanFeatures:
    """What a model sees of pictures with a black frame, each computed once: the image embeddings, or, where
    they depend on the question, what the eye gives before it.

    They are computed in fixed groups of neighbouring indices, so that a picture's features have the
    same bits whichever batch asks for it first, and a resumed run equals an uninterrupted one. Where
    all of them would not fit the budget, each batch computes its own.
    """

    def __init__(self, family: Family, data: Data, geometry: Geometry, group: int, budget: int) -> None:
        self._family, self._data, self._geometry, self._group = family, data, geometry, group
        self._budget = budget
        self._kept: list[Tensor | None] = [None] * -(-len(data) // group)
        self._keep: bool | None = None  # not known before the first embedding is seen

    @torch.no_grad()
    def __call__(self, indices: Sequence[int], canvas: Float[Tensor, "n 3 canvas canvas"]) -> Tensor:
        """Features of the samples `indices`, whose clean canvases are given."""
        if self._keep is None:
            self._of_group(indices[0] // self._group)  # its size tells whether all will fit
        if self._keep:
            return torch.stack([self._of_group(i // self._group)[i % self._group] for i in indices])
        return self._see(canvas)

    def _see(self, canvas: Tensor) -> Tensor:
        features = self._family.encode(self._family.to_pixels(canvas))
        return features if self._family.reads_question else self._family.connect(features)

    def _of_group(self, group: int) -> Tensor:
        kept = self._kept[group]
        if kept is None:
            start = group * self._group
            members = range(start, min(start + self._group, len(self._data)))
            canvas = place([self._data[i].picture for i in members], self._geometry, self._family.device)
            kept = self._see(canvas)
            self._keep = kept[0].nbytes * len(self._data) <= self._budget
            if self._keep:
                self._kept[group] = kept
        return kept


def place(pictures: Sequence[Any], geometry: Geometry, device: torch.device) -> Float[Tensor, "n 3 canvas canvas"]:
    """Shrink pictures and put them on a black canvas."""
    shrunk = np.stack([geometry.shrink(picture) for picture in pictures])
    return geometry.place(torch.from_numpy(shrunk).to(device))


def train(
    config: TrainConfig,
    folder: str | Path,
    sources: Sequence[Family] | None = None,
    data: Data | None = None,
    device: str = "cpu",
    resume: bool = True,
    quiet: bool | None = None,
) -> TrainResult:
    """Train a prompt and write prompt.safetensors, prompt.png, config.json and log.json to `folder`.

    sources, data: given by a caller that has them loaded; otherwise opened from the config.
    resume: go on from the folder's checkpoint, or else start anew; a checkpoint of another
        configuration, of other weights or of other data is an error.
    quiet: no progress bar (default: none where the output is not a terminal).
    Killed at any moment, the run loses at most what came after its last checkpoint, and on a CPU
    the resumed run ends with the same bits.
    """
    folder = Path(folder)
    task = tasks.get(config.task)
    if sources is None:
        sources = [families.load(name, device) for name in config.models]
    guide = Guide(config.guide, device) if config.tse else None
    geometry = Geometry(config.canvas, config.inner, task.fit)
    if data is None:
        data = tasks.open_data(config.data, task, "train", config.n_train + config.n_validation, config.seed)
    train_data, validation = split(data, min(config.n_validation, len(data) // 5), config.seed)
    prompt = Prompt.start(geometry, config.pixel_range)
    prompt.frame = prompt.frame.to(device)
    mask = geometry.mask().to(device)
    n_batches = len(train_data) // config.batch
    if not n_batches:
        raise DataError(f"{len(train_data)} training pictures do not fill one batch of {config.batch}.")
    n_steps = config.steps or n_batches
    update = Update(config.update, config.lr, n_steps, config.warm_up)
    clean = [CleanFeatures(s, train_data, geometry, config.batch, CLEAN_BUDGET // len(sources)) for s in sources]
    result = TrainResult(prompt)
    start, order = 0, np.empty(0, np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if not resume:
        checkpoint.unlink(missing_ok=True)
    identity = _identity(config, sources, data, guide)
    if checkpoint.exists():
        start = _restore(checkpoint, identity, result, update)
        log.info("resumed at step %d of %d", start, n_steps)
    bar = tqdm(range(start, n_steps), initial=start, total=n_steps, desc=f"prompt for {task.name}", disable=quiet)
    for step in bar:
        epoch, place_in_epoch = divmod(step, n_batches)
        if place_in_epoch == 0 or not len(order):
            order = np.random.default_rng([config.seed, epoch]).permutation(len(train_data))
        indices = order[place_in_epoch * config.batch :][: config.batch].tolist()
        began = time.perf_counter()
        facts, gradient = _gradient(config, indices, train_data, sources, clean, guide, prompt)
        frame = update.apply(prompt.frame, gradient, mask, step)
        prompt.frame = frame.clamp(0, 1) if config.pixel_range == "image" else frame
        result.steps.append({"step": step + 1, "seconds": time.perf_counter() - began, **facts})
        bar.set_postfix({name: f"{value:.3f}" for name, value in facts.items()}, refresh=False)
        last = step + 1 == n_steps
        if last:  # before the validation, so that nothing that happens there loses the run
            _save_checkpoint(checkpoint, identity, result, update, step + 1)
        if last or (config.validate_every and (step + 1) % config.validate_every == 0):
            scores = [accuracy(source, validation, geometry, prompt, task).accuracy for source in sources]
            result.validations.append({"step": step + 1, "accuracy": float(np.mean(scores))})
            bar.write(f"step {step + 1}: validation accuracy {np.mean(scores):.1%}") if not quiet else None
        if last or (step + 1) % config.checkpoint_every == 0:
            _save_checkpoint(checkpoint, identity, result, update, step + 1)
    prompt.facts = {
        "method": "tvp",
        "task": task.name,
        **identity,
        "validation": result.validations[-1:],
        "versions": {name: version(name) for name in ("torch", "transformers", "open_clip_torch")},
    }
    prompt.frame = prompt.frame.detach()
    prompt.save(folder / "prompt.safetensors")
    write_whole(folder / "config.json", json.dumps(asdict(config), indent=2).encode())
    write_whole(
        folder / "log.json",
        json.dumps({"steps": result.steps, "validations": result.validations}).encode(),
    )
    return result


def _gradient(
    config: TrainConfig,
    indices: Sequence[int],
    data: Data,
    sources: Sequence[Family],
    clean: Sequence[CleanFeatures],
    guide: Guide | None,
    prompt: Prompt,
) -> tuple[dict[str, float], Tensor]:
    """The loss's parts and its gradient by the frame.

    Each source encodes the prompted pictures once; both its losses read that one encoding.
    """
    samples = [data[i] for i in indices]
    canvas = place([sample.picture for sample in samples], prompt.geometry, prompt.frame.device)
    prompt.frame = prompt.frame.detach().requires_grad_(True)
    prompted = prompt.on(canvas)
    picked = [(i, q) for i, sample in enumerate(samples) for q in sample.questions[: config.questions]]
    rows = torch.tensor([i for i, _ in picked], device=prompted.device)
    total = prompted.new_zeros(())
    facts = {"answer": 0.0}
    asked = [q.text for _, q in picked]
    for source, remembered in zip(sources, clean, strict=True):
        features = source.encode(source.to_pixels(prompted))
        embeddings = source.connect_rows(features, rows, asked)
        labels = [q.labels for _, q in picked]
        answer = source.answer_loss(embeddings, asked, [q.answer for _, q in picked], labels)
        total = total + answer / len(sources)
        facts["answer"] += answer.item() / len(sources)
        if config.fca:
            with torch.no_grad():
                target = remembered(indices, canvas).index_select(0, rows)
                if source.reads_question:
                    target = source.connect(target, asked)
            consistency = feature_consistency(embeddings, target)
            total = total + config.fca * consistency / len(sources)
            facts["fca"] = facts.get("fca", 0.0) + consistency.item() / len(sources)
    if guide is not None:
        semantics = guide.task_semantics(prompted, [sample.caption for sample in samples])
        total = total - config.tse * semantics
        facts["tse"] = semantics.item()
    (gradient,) = torch.autograd.grad(total, prompt.frame)
    prompt.frame = prompt.frame.detach()
    if not torch.isfinite(gradient).all():
        raise RequestError("The gradient is not finite; the model or the data holds NaN or infinite values.")
    return facts, gradient


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


def _save_checkpoint(path: Path, identity: dict[str, Any], result: TrainResult, update: Update, step: int) -> None:
    state = {
        "step": step,
        "identity": json.dumps(identity),
        "frame": result.prompt.frame.detach(),
        "update": update.state(),
        "log": json.dumps([result.steps, result.validations]),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def _restore(path: Path, identity: dict[str, Any], result: TrainResult, update: Update) -> int:
    try:
        state = torch.load(path, weights_only=True, map_location=result.prompt.frame.device)
        theirs = json.loads(state["identity"])
        frame, moments, step = state["frame"], state["update"], int(state["step"])
        steps, validations = json.loads(state["log"])
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise DataError(f"The checkpoint {path} is damaged: {error}. Start anew with --restart.") from error
    mine = json.loads(json.dumps(identity))
    changed = [
        f"{key}: {theirs.get(part, {}).get(key)!r} there, {mine[part][key]!r} now"
        for part in mine
        for key in mine[part]
        if mine[part][key] != theirs.get(part, {}).get(key)
    ]
    if changed:
        raise RequestError(
            f"{path.parent} holds a run with another configuration ({'; '.join(changed)}). "
            "Choose another folder, or start anew with --restart."
        )
    result.prompt.frame = frame
    update.restore(moments)
    result.steps, result.validations = steps, validations
    return step
