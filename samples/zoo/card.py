"""Measure the zoo and write its card: `python samples/zoo/card.py [--photos test.parquet]`.

Writes scores.json and README.md beside this file. Scene questions are held out by their seed; photos
are CIFAR-10's test split, answered by the best-scoring of the ten labels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
import models
from build import EYE_STEPS, GUIDE_STEPS, LANGUAGE_STEPS, SEEDS, ZOO
from tvp.trainer import families, scenes, tasks
from tvp.trainer.data import Data, Parquet, Scenes, Subset
from tvp.trainer.evaluate import accuracy
from tvp.trainer.losses import Guide
from tvp.trainer.prompt import Geometry

FULL, FRAMED = Geometry(64, 64), Geometry(64, 48)
WHAT = {
    "llava": "LLaVA: CLIP ViT (4 layers, 8-px patches), two-layer MLP, Llama (4 layers)",
    "blip2": "BLIP-2: ViT (4 layers, 8-px patches), Q-Former (2 layers, 16 queries), OPT (4 layers)",
    "guide": "CLIP (open_clip): ViT (3 layers, 8-px patches), text transformer (2 layers); an eye of its own",
}
INTRODUCTION = """# The zoo

Tiny real models, so that everything runs offline. They are not useful for anything else: they know the
project's drawn scenes (one to four coloured shapes; questions about number, kind, colour, existence) and
CIFAR-10's ten classes of photos. `zoo:llava` and `zoo:blip2` can be used wherever a model is named,
`zoo:guide` wherever a guide is.
"""


def measure(name: str, n_scenes: int, photos: Data | None) -> dict[str, Any]:
    """Accuracy of one model on clean scenes by topic, in a black frame, and on photos."""
    model = families.load(f"zoo:{name}")
    data = Scenes(n_scenes, seed=31_337, n_questions=4)
    clean = accuracy(model, data, FULL, quiet=False)
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "scenes": clean.accuracy,
        "n_scene_questions": clean.n,
        **{topic: float(clean.right[i::4].mean()) for i, topic in enumerate(scenes.TOPICS)},
        "scenes_in_a_black_frame": accuracy(model, data, FRAMED, quiet=False).accuracy,
    }
    if photos is not None:
        result = accuracy(model, photos, FULL, task=tasks.get("cifar10"), quiet=False)
        row |= {"photos": result.accuracy, "n_photos": result.n}
    return row


@torch.no_grad()
def measure_guide(photos: Data | None) -> dict[str, Any]:
    """Zero-shot accuracy on photos, and how often a scene's own caption beats 63 other captions."""
    guide = Guide("zoo:guide")
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in guide.model.parameters())}
    data = Scenes(640, seed=31_337, n_questions=1)
    right = 0
    for start in range(0, 640, 64):
        samples = [data[i] for i in range(start, start + 64)]
        similar = _similarity(guide, samples, [s.caption for s in samples])
        right += sum(samples[j].caption == samples[i].caption for i, j in enumerate(similar.argmax(-1).tolist()))
    row["caption_of_64"] = right / 640
    if photos is not None:
        captions = [f"a {label}" for label in models.PHOTO_LABELS]
        hits = 0
        for start in tqdm(range(0, len(photos), 100), desc="photos"):
            samples = [photos[i] for i in range(start, min(start + 100, len(photos)))]
            best = _similarity(guide, samples, captions).argmax(-1).tolist()
            hits += sum(captions[j] == s.caption for s, j in zip(samples, best, strict=True))
        row |= {"photos": hits / len(photos), "n_photos": len(photos)}
    return row


def _similarity(guide: Guide, samples: list[Any], captions: list[str]) -> torch.Tensor:
    shrunk = torch.stack([torch.from_numpy(FULL.shrink(s.picture).copy()) for s in samples])
    seen = guide.image_features(FULL.place(shrunk))
    return seen @ guide.text_features(captions).T


def write_card(scores: dict[str, Any]) -> None:
    """Write README.md from the measured scores."""
    lines = [INTRODUCTION, "| model | what it is | parameters | weights | seed |", "| --- | --- | --- | --- | --- |"]
    for name, row in scores.items():
        size = sum(p.stat().st_size for p in (ZOO / name).glob("*.safetensors")) / 2**20
        parameters = f"{row['parameters'] / 1e6:.2f} M"
        lines.append(f"| `{name}` | {WHAT[name]} | {parameters} | {size:.1f} MB, float16 | {SEEDS[name]} |")
    chance = f"{scenes.CHANCE:.1%}"
    lines += [
        "",
        "## What they score",
        "",
        f"Chance on the four kinds of scene questions, equally often asked, is {chance}; on photos 10 %. Questions "
        "are answered by greedy generation, which must match exactly; photos by the best-scoring label.",
        "",
        "| model | scenes | number | kind | colour | existence | scenes in a black frame | CIFAR-10 test |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in scores.items():
        if name != "guide":
            topics = " | ".join(f"{row[topic]:.1%}" for topic in scenes.TOPICS)
            photo = f"{row['photos']:.1%} of {row['n_photos']:,}" if "photos" in row else "not measured"
            lines.append(
                f"| `{name}` | **{row['scenes']:.1%}** of {row['n_scene_questions']:,} | {topics} | "
                f"{row['scenes_in_a_black_frame']:.1%} | **{photo}** |"
            )
    guide = scores["guide"]
    lines += [
        "",
        f"The guide finds a scene's own caption among 64 in {guide['caption_of_64']:.1%} of cases (chance 1.6 %)"
        + (f" and names {guide['photos']:.1%} of the test photos (chance 10 %)." if "photos" in guide else "."),
        "",
        "`python samples/zoo/card.py --photos test.parquet` prints these figures and writes this page.",
        "",
        "## How they were trained",
        "",
        "`python samples/zoo/build.py llava blip2 guide --photos train.parquet` (one process a model and "
        "`--threads 1` use two cores best). Every stage continues from its checkpoint; without photos the models "
        "learn scenes only. Steps by stage:",
        "",
        "| model | shapes | eye | bind | photos | language |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| `{name}` | {' | '.join(str(n or '') for n in EYE_STEPS[name])} | {LANGUAGE_STEPS[name]} |"
            for name in EYE_STEPS
        ),
        "",
        f"The guide: {GUIDE_STEPS} steps of contrast between pictures and captions.",
        "",
        "- **The eye first, densely.** Scenes are drawn, so the kind and colour at each patch are known; linear "
        "read-outs of every patch (and of every query of the Q-Former) teach them, and are thrown away. *bind* adds "
        'the mixture of both ("red star") as one class.',
        "- **Then the language part, on the frozen eye.** Eight questions a picture share a sequence, and each sees "
        "the picture and itself only.",
        "- **Light and frames.** Lessons show pictures at random sizes in black or neutral frames under one mildly "
        "dim and tinted light. The bad camera of the demo is outside of that range.",
        "- CIFAR-10: 20,000 photos of its training split, of which half of the patches are shown while the eye learns.",
        "",
        "The checkpoints of these weights were made with interruptions (a stage's schedule was changed once while it "
        "ran), so a rebuild gives models that are alike, not the same bits.",
    ]
    (ZOO / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=ZOO.parents[2] / "shared/data/cifar10/test.parquet")
    parser.add_argument("--n-scenes", type=int, default=1024)
    parser.add_argument("--n-photos", type=int, default=10_000)
    arguments = parser.parse_args()
    photos: Data | None = None
    if arguments.photos.is_file():
        everything = Parquet(arguments.photos.parent, "test", tasks.get("cifar10").question)
        photos = Subset(everything, range(min(arguments.n_photos, len(everything))))
    scores = {name: measure(name, arguments.n_scenes, photos) for name in models.MAKERS}
    scores["guide"] = measure_guide(photos)
    (ZOO / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    write_card(scores)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
