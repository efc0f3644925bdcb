"""Writes the goldens: what the unpatched PyTorch models answer, for machines that have no PyTorch.

    python -m tests.goldens.make                 zoo.json and its pictures, after the zoo has changed
    python -m tests.goldens.make --bundles NAME  the folder NAME: tiny bundles of today's format, to be loaded for ever

Nothing in the JSON goes through ONNX or the sdk: pictures of the canvas's own size need no resizing, so that both
sides start from the same pixels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.tiny import save_tiny
from tvp.export.bundle import export
from tvp.export.parity import pixel_values
from tvp.sdk.formats.archive import pack
from tvp.trainer import families, tasks
from tvp.trainer.data import Scenes
from tvp.trainer.families import Family
from tvp.trainer.prompt import Geometry, Prompt

HERE = Path(__file__).parent
ZOO = ("blip2", "blip2-t5", "instructblip", "smolvlm", "llava", "qwen2vl")
TINY = ("llava_next", "instructblip-t5")  # one that writes its keys in place, one with a connector and an encoder
LABELS = ("yes", "no", "a star", "2")
N_PICTURES, N_NEW_TOKENS = 3, 8


@torch.no_grad()
def golden(family: Family, prompt: Prompt | None, pictures: Path) -> list[dict[str, Any]]:
    """Answers and label scores of a model about the pictures of a folder, in the order of their names."""
    geometry = prompt.geometry if prompt else Geometry(64, 64)
    cases = []
    data = Scenes(N_PICTURES, seed=1, n_questions=3)
    for number in range(N_PICTURES):
        picture = np.asarray(Image.open(pictures / f"{number}.png"))
        for question in (question.text for question in data[number].questions):
            embeddings = family.see(pixel_values(family, geometry, prompt, picture), [question])
            tokens, logits = family.generate_tokens(embeddings, [question], N_NEW_TOKENS)
            scores = family.answer_scores(embeddings, [question], LABELS)[0]
            chosen = logits[0].log_softmax(-1)[range(len(tokens[0])), tokens[0]]
            cases.append(
                {
                    "picture": f"{number}.png",
                    "question": question,
                    "tokens": tokens[0],
                    "text": family.text(tokens[0]),
                    "log_probabilities": rounded(chosen),
                    "scores": dict(zip(LABELS, rounded(scores), strict=True)),
                }
            )
    return cases


def rounded(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(file)


def prompt_over() -> Prompt:
    """A random frame over the edges of pictures that fill the canvas."""
    prompt = Prompt.start(Geometry(64, 48, placement="over"), "free")
    noise = torch.rand(prompt.frame.shape, generator=torch.Generator().manual_seed(5))
    prompt.frame = noise * prompt.geometry.mask()
    return prompt


def make_zoo() -> None:
    """zoo.json: of each zoo model, the digest of its weights and its answers."""
    data = Scenes(N_PICTURES, seed=1, n_questions=3)
    for number in range(N_PICTURES):
        Image.fromarray(data[number].picture).save(HERE / f"{number}.png")
    content = {}
    for name in ZOO:
        family = families.load(f"zoo:{name}")
        content[name] = {"weights": families.digest(f"zoo:{name}"), "cases": golden(family, None, HERE)}
    write(HERE / "zoo.json", content)


def make_bundles(folder: Path) -> None:
    """Packed bundles of tiny random models, each with its model's answers; what is there is never replaced."""
    folder.mkdir()
    for name in TINY:
        with tempfile.TemporaryDirectory() as place:
            model = save_tiny(name, Path(place) / "model")
            prompt = prompt_over()
            export(model, tasks.get("count"), Path(place) / name, prompt=prompt, reuse=False)
            pack(Path(place) / name, folder / f"{name}.tvp")
            write(folder / f"{name}.json", golden(families.load(model), prompt, HERE))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", metavar="NAME", help="write tiny bundles to this new folder instead")
    wanted = parser.parse_args()
    make_bundles(HERE / wanted.bundles) if wanted.bundles else make_zoo()
