"""Training a prompt: the loop over steps."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tvp.sdk.errors import CheckError

from .agreement import Agreement
from .agreement import measure as measure_agreement
from .alignment import Alignment
from .config import TrainConfig
from .data import Data
from .families import Family
from .guard import Verdict, judge, name_of, refuse_unknown
from .outcome import Outcome, judged, settled
from .preparation import prepare
from .progress import bar, working
from .prompt import Prompt
from .record import FACT, TaskRecord
from .run import Run
from .showing import write_pictures
from .starts import Choice, start
from .step import Objective
from .team import Team
from .validation import Validation

__all__ = ["TrainConfig", "TrainResult", "train"]

ADVICE = (
    "Learn longer, from more pictures, or on several models; or keep it all the same with --guard-model none, and "
    "measure it where it will be used."
)
TRY_NEXT = {
    "frame": "A narrower frame costs less of the picture (--inner closer to --canvas), and --method both learns a lens "
    "beside it.",
    "lens": "Several models (-m, repeated) make a lens more robust; where there are answers, --method both learns from "
    "them.",
    "both": "Ask for labels in words that the model knows, or take a larger model.",
}
GOOD = 0.9  # right answers without a prompt, above which there is little to win


@dataclass
class TrainResult:
    """A trained prompt and how training went.

    Attributes:
        prompt: the prompt.
        steps: the log of every step: its number, the parts of the loss, the learning rate, seconds.
        validations: the log of every validation: the step before it, and the accuracy or the distance in [0, 1].
        chosen: the validation of this very prompt: with early stopping the best, else the last.
        learned_from: `answers`, `pairs`, `unpaired` or `pixels`.
        why: what decided it.
        without: the same validation without a prompt; empty where answers are learned from.
        alignment: how well pairs lie on each other; None without pairs.
        choice: the kind and the start of the lens, and the others that were tried; None without a lens.
        verdict: what the guard says of the lens; None without a guard.
        unguarded: why there is no guard; '' where there is one.
        outcome: what the prompt does to the answers to held-out questions; None where there are none.
        agreement: how often answers agree with those about the clean pictures; None without these, or with an outcome.
    """

    prompt: Prompt
    steps: list[dict[str, float]]
    validations: list[dict[str, float]]
    chosen: dict[str, float]
    learned_from: str
    why: str
    without: dict[str, float]
    alignment: Alignment | None
    choice: Choice | None
    verdict: Verdict | None
    unguarded: str
    outcome: Outcome | None
    agreement: Agreement | None


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
    allow_outside: bool = False,
    typed: Collection[str] | None = None,
    like: Data | None = None,
) -> TrainResult:
    """Train a prompt, and write it with its configuration, logs and pictures to a folder.

    The folder gets prompt.safetensors, prompt.png of a frame, lens.png of a lens, pictures.png, which shows what the
    prompt does, config.toml, log.jsonl, curves.png, frames/ and checkpoint.pt. Where a lens was chosen, choice.json
    says what was tried. A prompt that does not help, or whose lens the guard refuses, is written to
    rejected.safetensors instead.
    A run that is killed loses at most the steps after its last checkpoint; resumed on a CPU, it ends with the same
    bits. Started by `accelerate launch`, several processes share each batch.

    Args:
        config: everything that decides the prompt.
        folder: where the run writes.
        sources: source models that are loaded already, one for each of `config.models`. Default: they are loaded.
        data: training data that is open already. Default: it is opened as `config` says.
        device: `cpu`, `cuda`, `cuda:1` …; `auto` spreads models that no single device holds. Default `cpu`.
        resume: go on from the folder's checkpoint, where there is one; False starts anew. Default True.
        quiet: show no progress bar. Default None: no bar where the output is not a terminal.
        tensorboard: log for TensorBoard too, to tensorboard/. Default False.
        compile: run all vision encoders through `torch.compile`, which pays off on long runs. Default False.
        offload: keep source models on the CPU, except the one whose turn it is, to save memory. Default False.
        skip_bad: leave bad rows out and list them in a warning; False refuses data with bad rows. Default False.
        download: let torchvision download the task's data set, where it can. Default False.
        allow_outside: rows and links of the data may lead out of its folder. Default False: such a row is a bad one.
        typed: names of models that may be fetched from a hub. The command gives those that its user typed, so that a
            stranger's TOML file fetches nothing. Default: all.
        like: other good pictures that are open already. Default: they are opened as `config` says.

    Raises:
        RequestError: the request cannot be met: an unknown device, a folder that is a bundle or that another run
            writes to, a checkpoint of another configuration, of other weights or of other data.
        ModelError: a model cannot be loaded.
        DataError: the data or the checkpoint cannot be read.
        CheckError: the prompt does not help on held-out pictures, or the lens makes the guard's model worse; it is
            not kept.
    """
    team = Team()
    run = Run(folder, team, tensorboard)
    refuse_unknown(config, typed)
    prepared = prepare(
        config,
        team,
        sources,
        data,
        like,
        device=device,
        compile=compile,
        offload=offload,
        skip_bad=skip_bad,
        download=download,
        allow_outside=allow_outside,
        typed=typed,
        accept=partial(run.refuse_other, resume=resume),
    )
    config, n_steps, identity = prepared.config, prepared.n_steps, prepared.identity()
    objective, validate = Objective.of(prepared), Validation(prepared, team)
    with run.opened():
        hidden = quiet if team.leads else True
        learned, choice = start(prepared, objective, validate, run.folder, team, resume, identity, hidden)
        updates = learned.updates(config, n_steps)
        run.begin(identity, learned, updates, objective, resume)
        batches = prepared.batches(run.step, n_steps, team)
        shown = bar(batches, f"prompt for {prepared.task.name}", quiet=hidden, total=n_steps, initial=run.step)
        for batch in shown:
            if run.is_stale(config.patience):
                break
            began = time.perf_counter()
            facts, gradients = objective(batch, learned, team)
            learned.move(updates, gradients, run.step)
            run.add_step(facts, updates[-1].rate(run.step), time.perf_counter() - began)
            shown.set_postfix(run.shown(), refresh=False)
            due = config.validate_every > 0 and run.step % config.validate_every == 0 and run.step < n_steps
            if due:
                run.add_validation(validate(learned.prompt()))
            if due or run.step % config.checkpoint_every == 0:
                run.keep()
        if run.step == n_steps and not run.is_validated:
            run.keep()  # first, so that nothing that happens during the validation loses the run
            run.add_validation(validate(learned.prompt()))
            run.keep()
        prompt, chosen = run.result(config)
        without = {} if prepared.learn_from == "answers" else validate(None)
        verdict = judge(prompt, prepared, team, typed)
        prompt.facts |= {"learned_from": prepared.learn_from, "without": without}
        prompt.facts |= {FACT: TaskRecord.of(config, prepared.task, prepared.data).facts()}
        prompt.facts |= {"choice": asdict(choice)} if choice else {}
        prompt.facts |= {"alignment": asdict(prepared.alignment)} if prepared.alignment else {}
        prompt.facts |= {"guard": asdict(verdict)} if verdict else {}
        with working("asking about held-out pictures"):
            outcome = judged(prompt, prepared, team, typed)
            prompt, chosen, refused = settled(prompt, chosen, prepared, outcome, without)
            agreement = None if outcome else measure_agreement(prompt, prepared, team, typed)
        prompt.facts |= {"agreement": asdict(agreement)} if agreement else {}
        kept = not refused and (verdict is None or verdict.kept)
        file = run.write(config, prompt, kept)
        if team.leads:
            write_pictures(run.folder, prompt, prepared.validation)
    if refused:
        raise CheckError(f"The prompt is not kept: {refused}.\n{_advice(config, outcome, run.step, file)}")
    if verdict and not kept:
        raise CheckError(f"The lens is not kept: {verdict}. It is in {file}. {ADVICE}")
    unguarded = "" if verdict else name_of(config)[1] or "it could not be asked"
    progress = run.progress
    return TrainResult(
        prompt,
        progress.steps,
        progress.validations,
        chosen,
        prepared.learn_from,
        prepared.why,
        without,
        prepared.alignment,
        choice,
        verdict,
        unguarded,
        outcome,
        agreement,
    )


def _advice(config: TrainConfig, outcome: Outcome | None, n_steps: int, file: Path) -> str:
    """Return what to do about a prompt that is not kept."""
    if outcome and outcome.without >= GOOD:
        return f"The model needs no prompt: export it as it is, without --prompt. The prompt is in {file}."
    next_one = TRY_NEXT["frame" if config.lens == "none" else "both" if config.frame else "lens"]
    return (
        f"It is in {file}. It took {n_steps} steps: more pictures or more steps (--steps {3 * n_steps}) may help. "
        f"{next_one} --keep last keeps a prompt whatever it does. To use the model as it is, export it without "
        "--prompt."
    )
