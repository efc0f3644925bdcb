"""How exactly exported zoo models agree with PyTorch: `python -m benchmarks.parity [--photos FOLDER] [--prompt FILE]`.

Exports each model with a random frame, or with the prompt of --prompt, and compares the bundle with the unpatched
PyTorch model on 100 scenes and, where the folder is given, on 100 CIFAR-10 photos. Prints a table, and writes JSON
where --output says.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from samples.zoo.models import ENCODER_OF
from tvp import sdk
from tvp.export import parity
from tvp.export.bundle import export
from tvp.trainer import families, tasks
from tvp.trainer.data import Data, Parquet, Scenes
from tvp.trainer.prompt import Geometry, Prompt


def random_frame() -> Prompt:
    geometry = Geometry(64, 48)
    frame = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * geometry.mask()
    return Prompt(frame, geometry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--prompt", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    prompt = Prompt.load(arguments.prompt) if arguments.prompt else random_frame()
    sources: dict[str, Data] = {"scenes": Scenes(arguments.n, seed=3, n_questions=1)}
    if arguments.photos:
        sources["photos"] = Parquet(arguments.photos, "test", "What is in the photo?")
    rows = []
    for name in (f"zoo:{name}" for name in ENCODER_OF):
        model = families.load(name)
        with tempfile.TemporaryDirectory() as folder:
            export(name, tasks.get("scenes"), Path(folder) / "task", prompt=prompt, family=model)
            with sdk.load(Path(folder) / "task") as task:
                for source, data in sources.items():
                    cases = [(s.picture, s.questions[0].text) for s in (data[i] for i in range(arguments.n))]
                    report = parity.measure(task, model, prompt.geometry, prompt, cases)
                    rows.append({"model": name, "data": source, **asdict(report.facts())})
                    print(
                        f"{name:<17} {source:<8} tokens {report.tokens_equal}/{report.n_cases}, end to end "
                        f"{report.end_to_end_equal}/{report.n_cases}, logits {report.logits:.1e}, pixels within a "
                        f"level {report.pixels_within_a_level:.4%}"
                    )
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
