"""Train the zoo: `python samples/zoo/build.py [llava] [blip2] [guide]`; continues where it stopped.

A model is taught its eye in stages, then its language part on the frozen eye, on scenes and (where the
file is there) on CIFAR-10 photos. Checkpoints go to samples/zoo/_work, the finished folders to
samples/zoo/<name>.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import guide
from lessons import lessons, load_photos
from models import MAKERS, eye_parameters, make_tokenizer, save
from teach import EyeHeads, eye_loss, language_loss, language_parameters, run

ZOO = Path(__file__).parent
WORK = ZOO / "_work"
# Scenes alone come first: on a mixture from the start the eye takes far longer to tell kinds apart.
EYE_STEPS = {"llava": (800, 1800, 400, 0), "blip2": (1300, 2000, 500, 700)}
LANGUAGE_STEPS = {"llava": 2300, "blip2": 1500}
GUIDE_STEPS = 600
N_KEPT = 32  # of the 64 patches of a photo, while the eye learns
SEEDS = {"llava": 11, "blip2": 22, "guide": 33}


def build(name: str, photos_file: Path, scale: float) -> None:
    """Train one model from its seed to its folder. scale multiplies the numbers of steps."""
    torch.manual_seed(SEEDS[name])
    tokenizer = make_tokenizer()
    model = MAKERS[name](tokenizer)
    heads = EyeHeads()
    photos = load_photos(photos_file) if photos_file.exists() else None
    if photos is None:
        print(f"{photos_file} is absent: {name} learns scenes only", file=sys.stderr)
    taught = nn.ModuleDict({"model": model, "heads": heads})
    eye = [*eye_parameters(name, model), *heads.parameters()]
    stages = (("shapes", 64, 0), ("eye", 24, 80), ("bind", 36, 70), ("photos", 16, 100))
    for (stage, n_scenes, n_photos), n_steps in zip(stages, EYE_STEPS[name], strict=True):
        run(
            f"{name} {stage}",
            WORK / f"{name}-{stage}.pt",
            int(n_steps * scale),
            1.5e-3 if stage != "photos" else 1e-3,
            eye,
            taught,
            lambda step: lessons(SEEDS[name] * 1000 + step, n_scenes, n_photos, photos, n_questions=0),  # noqa: B023
            lambda lesson: eye_loss(name, model, heads, lesson, N_KEPT, stage in ("bind", "photos")),  # noqa: B023
        )
    run(
        f"{name} language",
        WORK / f"{name}-language.pt",
        int(LANGUAGE_STEPS[name] * scale),
        2e-3,
        language_parameters(name, model),
        taught,
        lambda step: lessons(SEEDS[name] * 1000 + 500 + step, 26, 8, photos, n_questions=8),
        lambda lesson: language_loss(name, model, tokenizer, lesson),
    )
    save(name, model, tokenizer, ZOO / name)


def build_guide(photos_file: Path, scale: float) -> None:
    torch.manual_seed(SEEDS["guide"])
    model, tokenizer = guide.make()
    photos = load_photos(photos_file) if photos_file.exists() else None
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
    parser.add_argument("names", nargs="*", default=["llava", "blip2", "guide"])
    parser.add_argument("--photos", type=Path, default=ZOO.parents[2] / "shared/data/cifar10/train.parquet")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every number of steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    WORK.mkdir(exist_ok=True)
    for name in arguments.names:
        if name == "guide":
            build_guide(arguments.photos, arguments.scale)
        else:
            build(name, arguments.photos, arguments.scale)


if __name__ == "__main__":
    main()
