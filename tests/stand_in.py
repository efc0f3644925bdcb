"""Published models without their files: weights from one pool of random numbers, tokenizers of bytes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.modeling_utils import no_init_weights

from tests.published import BERT_TOKENS, Published
from tvp.trainer import families
from tvp.trainer.families._checkpoint import Checkpoint

FIRST_BYTE = 1000  # ids of the stand-in tokenizer's 256 byte tokens; no special token is among them
N_POOL = 130528 * 4096  # the largest tensor of all: ChatGLM-6B's embeddings


def make_pool() -> torch.Tensor:
    """Random numbers as large as weights usually are: uniform, standard deviation 0.029."""
    return torch.empty(N_POOL).uniform_(-0.05, 0.05, generator=torch.Generator().manual_seed(0))


class StandIn(Checkpoint):
    """What a family reads of a published model, without the model's files.

    Its weights are windows of one pool of random numbers: a model of gigabytes costs no more memory
    than the pool, and no time.
    """

    def __init__(self, case: Published, pool: torch.Tensor) -> None:
        self.name, self.kind, self.config = case.name, case.kind, dict(case.config)
        self._case, self._pool = case, pool

    dtype, canvas = torch.float32, None

    def weights(self, architecture: Any, dtype: torch.dtype | None = None) -> Any:
        with no_init_weights():  # nothing is written to what is replaced below
            model = architecture(architecture.config_class.from_dict(self.config))
        model.tie_weights()
        norms = [module for module in model.modules() if "Norm" in type(module).__name__]
        start = 0
        for parameter in model.parameters():
            n = parameter.numel()
            assert parameter.dtype == torch.float32
            start = start if start + n <= len(self._pool) else 0
            parameter.data = self._pool[start : start + n].view(parameter.shape)
            start += -(-n // 16) * 16  # windows begin at multiples of 64 bytes
        for norm in norms:
            for name, parameter in norm.named_parameters(recurse=False):
                parameter.data = torch.full_like(parameter, float(name == "weight"))
        if self._case.end is not None:
            model.generation_config.eos_token_id = self._case.end
        return model

    def tokenizer(self, folder: str = "") -> PreTrainedTokenizerBase:
        if folder:  # the Q-Former's
            assert folder == "qformer_tokenizer"
            return byte_tokenizer(BERT_TOKENS, ("[CLS]",), ("[SEP]",), {})
        case = self._case
        return byte_tokenizer(case.special, case.begin, case.close, case.marks)

    def pixel_format(self, size: int) -> families.PixelFormat:
        return families.PixelFormat(size, *self._case.pixels, self._case.filter)

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        return None


def byte_tokenizer(
    special: Mapping[str, int], begin: tuple[str, ...], close: tuple[str, ...], marks: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """Every byte is a token, and every special token has its published id.

    What else a published vocabulary holds is filled with names that no text has.
    """
    vocabulary = {f"unused {i}": i for i in range(max(FIRST_BYTE + 256, *special.values()) + 1)}
    names = dict(enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), FIRST_BYTE))
    names |= {i: token for token, i in special.items()}
    for i, token in names.items():
        del vocabulary[f"unused {i}"]
        vocabulary[token] = i
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *close], special_tokens=[(mark, special[mark]) for mark in {*begin, *close}]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(special), model_max_length=10**6, **marks
    )


def build(case: Published, pool: torch.Tensor) -> families.Family:
    """The family of a published model, with weights from a pool."""
    module = importlib.import_module(f"tvp.trainer.families.{families.FAMILIES[case.kind]}")
    return module.make(StandIn(case, pool))
