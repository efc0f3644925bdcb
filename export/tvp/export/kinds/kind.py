"""What an export asks of a model kind: `Kind`, which the modules of this folder have as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tvp import sdk
from tvp.sdk.formats.manifest import BaseManifest
from tvp.trainer.data import Sample
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.task_definition import TaskDefinition

from ..parity import Case, Parity

# The fields of a base's manifest that `base.put_base` fills in when its graphs are final.
NOT_YET: dict[str, Any] = {"precision": "fp32", "made_from": "", "files": {}}


class Kind(Protocol):
    """One of `causal`, `seq2seq` and `contrastive`; the family is one of that kind."""

    def write(self, family: Any, folder: Path, fused: bool) -> BaseManifest:
        """Write graphs, embeddings and tokenizers of a base in fp32.

        Args:
            family: the model, on the CPU in fp32.
            folder: exists and is empty.
            fused: whether the vision encoder has onnxruntime's own operators, which TensorRT lacks.

        Returns:
            The manifest, but for the fields of `NOT_YET`.

        Raises:
            ModelError: the sdk could not read the model's tokenizer.
        """

    def about(self, family: Any) -> list[str]:
        """Return the texts that a base depends on besides weights and versions: configuration, layout, tokenizers."""

    def tokenizer_texts(self, family: Any) -> dict[str, str]:
        """Return the content of each tokenizer's file, by its name."""

    def sizes(self, family: Any, precision: str, encoder_precision: str) -> dict[str, int]:
        """Return the bytes of each graph's weights, by file.

        Args:
            precision: of the language model.
            encoder_precision: of everything else.
        """

    def cases(self, task: TaskDefinition, samples: Sequence[Sample]) -> list[Case]:
        """Return what the parity gate asks about samples; raises RequestError where there is nothing to ask."""

    def measure(
        self,
        task: sdk.Task,
        family: Any,
        geometry: Geometry,
        prompt: Prompt | None,
        cases: Sequence[Case],
        n_golden: int,
        exact: bool,
    ) -> Parity:
        """Ask both sides every case and compare them.

        Args:
            task: the bundle, loaded.
            prompt: that is baked into it.
            n_golden: number of cases whose answers by PyTorch are kept as golden cases.
            exact: whether scores must be equal too, and not the answers alone (fp32).
        """
