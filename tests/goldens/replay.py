"""Asks bundles what PyTorch was asked, where PyTorch cannot even be imported.

python tests/goldens/replay.py CASES.json      {"BUNDLE": [case, ...], ...}; prints how many are equal
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from pathlib import Path

ABSENT = {"torch", "torchvision", "transformers", "optimum", "onnx", "safetensors", "jaxtyping", "open_clip"}
PICTURES = Path(__file__).parent
TOLERANCE = 1e-3  # of a log-probability


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} must not be needed here", name=name)


def differences(task, case):
    """What is not as PyTorch said, in words."""
    picture = PICTURES / case["picture"]
    answer = task.ask(picture, case["question"], max_new_tokens=8)
    if (list(answer.tokens), answer.text) != (case["tokens"], case["text"]):
        yield f"answered {answer.tokens} {answer.text!r}, PyTorch {case['tokens']} {case['text']!r}"
        return
    ranked = task.rank(picture, case["question"], labels=list(case["scores"]))
    pairs = list(zip(answer.log_probabilities, case["log_probabilities"], strict=True))
    pairs += [(row.score, case["scores"][row.label]) for row in ranked]
    far = max(abs(mine - theirs) for mine, theirs in pairs)
    if not far <= TOLERANCE:
        yield f"log-probabilities differ by {far:.1e}"
    if [row.label for row in ranked] != sorted(case["scores"], key=lambda label: -case["scores"][label]):
        yield f"ranked {[row.label for row in ranked]}"


def main():
    sys.meta_path.insert(0, Absent())
    from tvp import sdk

    found, n_equal = [], 0
    for bundle, cases in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        with sdk.load(bundle, providers="cpu") as task:
            for case in cases:
                different = list(differences(task, case))
                found += [f"{bundle}, {case['picture']}, {case['question']!r}: {line}" for line in different]
                n_equal += not different
    if loaded := ABSENT & {name.split(".")[0] for name in sys.modules}:
        found.append(f"{sorted(loaded)} were imported")
    if found:
        sys.exit("\n".join(found))
    print(n_equal)


if __name__ == "__main__":
    main()
