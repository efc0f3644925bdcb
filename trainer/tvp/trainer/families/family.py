"""What a model family is: one way of wiring a vision encoder to a language model, behind a few functions.

The trainer, the evaluator and the exporter all go through this interface, so the order of the
tokens that a model sees is written down once: in `tvp.sdk.formats.layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tvp.sdk.errors import ModelError, RequestError
from tvp.sdk.formats.layout import UNKNOWN, PromptLayout, PromptTokenizer

from .pixels import PixelFormat, to_pixels

ModelKind = Literal["causal", "seq2seq", "contrastive"]
N_TEXTS = 4096  # questions, and answers, whose tokens a family remembers

# Settings that would change a greedy answer, or scores -> the value, beside None, with which they do not.
IGNORED: dict[str, Any] = {
    "num_beams": 1, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "min_length": 0, "min_new_tokens": 0, "bad_words_ids": [], "suppress_tokens": [], "begin_suppress_tokens": [],
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "sequence_bias": None, "guidance_scale": 1.0,
}  # fmt: skip
IGNORED_OF_TEXT = {"logits_scaling": 1.0, "final_logit_softcapping": None, "attn_logit_softcapping": None}


class Family:
    """A frozen model: what it sees, and what it would answer.

    A family gives `encode` and `connect`, and what depends on its language model, which three
    classes share among all families: `CausalFamily`, `Seq2SeqFamily` and `ContrastiveFamily`.

    reads_question: whether the image embeddings depend on the question, as InstructBLIP's do.
    generates: whether it answers in free text; if not, it only chooses among given answers.
    kind: `causal`, `seq2seq` or `contrastive`: what its language model is.
    exports: whether the exporter can write it; encoder_batches: its vision encoder for any number of pictures, or for
    one.
    """

    name = ""
    kind: ModelKind
    reads_question = False
    generates = True
    exports = False
    encoder_batches = True

    def __init__(self, model: Any, pixel_format: PixelFormat) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.pixel_format = pixel_format

    # What a vision encoder gives.

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n ... n_features"]:
        """Return what the vision encoder sees, before any question."""
        raise NotImplementedError

    def compile(self) -> None:
        """Run `encode` through `torch.compile` from now on: same values, to rounding, after a slow first call."""
        self.encode = torch.compile(self.encode)  # type: ignore[method-assign]

    def connect(
        self, features: Float[Tensor, "n ... n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """Return the image embeddings as they enter the language model, of features from `encode`.

        questions: one for each row of features; only a family that `reads_question` needs them.
        """
        raise NotImplementedError

    def connect_rows(
        self, features: Float[Tensor, "n_pictures ... n_features"], rows: Int[Tensor, " n"], questions: Sequence[str]
    ) -> Float[Tensor, "n n_image n_text"]:
        """Return the image embeddings for each question, of which rows[i] says the picture.

        The vision encoder ran once a picture; so does the connector where it does not read the question.
        """
        # index_select, since the backward of features[rows] adds up in any order, and so other bits each time.
        # A part of a model that is spread over devices may be on another than the rows.
        if self.reads_question:
            return self.connect(features.index_select(0, rows.to(features.device)), questions).to(rows.device)
        return self.connect(features).to(rows.device).index_select(0, rows)

    # What a language model gives.

    def answer_loss(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        answers: Sequence[str],
        candidates: Sequence[Sequence[str]] = (),
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy over the answers' tokens, the end token included.

        candidates: for each question the answers that it could have had; what only chooses among
            answers (CLIP) needs them, others do not read them.
        """
        raise NotImplementedError

    def answer_scores(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        candidates: Sequence[str],
        at_once: int = 256,
    ) -> Float[Tensor, "n n_candidates"]:
        """Return the mean log-probability of each candidate's tokens, the end token included.

        at_once: rows (a question with a candidate) that the language model reads at a time.
        """
        raise NotImplementedError

    def generate(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        """Answer greedily; returns the texts, stripped of spaces and special tokens."""
        raise NotImplementedError

    def n_answer_tokens(self, answers: Sequence[str]) -> int:
        """How many terms the mean of `answer_loss` has: tokens, or answers where they are not read by token."""
        return len(answers)

    # What all share.

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def to_pixels(self, canvas: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Map canvases in [0, 1] to what the vision encoder takes, in the weights' type; differentiable."""
        return to_pixels(canvas, self.pixel_format).to(self.dtype)

    def see(
        self, pixels: Float[Tensor, "n 3 size size"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """Return the image embeddings as they enter the language model; `encode` and `connect` in one."""
        return self.connect(self.encode(pixels), questions)


class GenerativeFamily(Family):
    """A family that reads and writes tokens. A subclass gives `make_layout`.

    template: the checkpoint's chat template, where it has one.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, pixel_format: PixelFormat, template: str | None = None
    ) -> None:
        super().__init__(model, pixel_format)
        self.tokenizer = tokenizer
        self.template = template
        self.layout = self.make_layout()
        self._prompt_tokenizer = PromptTokenizer(
            self.layout,
            lambda text, special: tokenizer(text, add_special_tokens=special).input_ids,
            frozenset(
                i for i, token in tokenizer.added_tokens_decoder.items() if token.special and token.content != UNKNOWN
            ),
        )
        # A task asks the same few questions at every step, and a call of a tokenizer costs as much as a small layer.
        self._prompt_ids = lru_cache(N_TEXTS)(self._prompt_tokenizer.prompt_ids)
        self._answer_ids = lru_cache(N_TEXTS)(self._prompt_tokenizer.answer_ids)

    def make_layout(self) -> PromptLayout:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        # Not the first parameter's: in fp16 transformers keeps the queries of a Q-Former in fp32.
        return self.embed_tokens.weight.dtype  # type: ignore[return-value]

    @property
    def embed_tokens(self) -> torch.nn.Module:
        return self.model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """What ends an answer: the checkpoint's own choice (BLIP-2 ends at a line break), else the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        ends = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
        if not ends:
            raise ModelError("Neither generation_config.json nor the tokenizer says which token ends an answer.")
        # The first is the one that training teaches: of several, what ends a turn in the model's chats.
        return tuple(sorted(ends, key=lambda end: end != self.tokenizer.eos_token_id))

    @property
    def ignored_settings(self) -> list[str]:
        """What the checkpoint's files say about its answers and scores that is not followed, as `name=value`.

        Answers are the likeliest tokens, as they come out of the head.
        """
        said = [(self.model.generation_config, IGNORED), (self.text_config, IGNORED_OF_TEXT)]
        pairs = [
            (name, getattr(config, name, None), neutral) for config, names in said for name, neutral in names.items()
        ]
        return [f"{name}={value}" for name, value, neutral in pairs if value not in (None, neutral)]

    @property
    def text_config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def n_positions(self) -> int | None:
        """How many tokens the language model reads; None where nothing bounds it."""
        return getattr(self.text_config, "max_position_embeddings", None)

    def image_token(self, token_id: int | None) -> str:
        """The text of the token that stands for the image while a prompt is tokenised."""
        token = None if token_id is None else self.tokenizer.convert_ids_to_tokens(token_id)
        return token or ""

    def generate_tokens(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> tuple[list[list[int]], list[Float[Tensor, "n_new n_vocab"]]]:
        """Answer greedily; returns each row's token ids (end token included) and their logits."""
        raise NotImplementedError

    @torch.no_grad()
    def generate(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        tokens, _ = self.generate_tokens(embeddings, questions, max_new_tokens)
        return [self.text(row) for row in tokens]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, as the sdk gives it; its end token need not be a special one."""
        if tokens and tokens[-1] in self.layout.end:
            tokens = tokens[:-1]
        decoded: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded.strip()

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the image embeddings, up to where the answer starts."""
        before, after = self._prompt_ids(question)
        return before.copy(), after.copy()

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer with its separator and its end token: the same in loss and scores."""
        return self._answer_ids(answer).copy()

    def n_answer_tokens(self, answers: Sequence[str]) -> int:
        return sum(len(self.answer_ids(answer)) for answer in answers)

    def _refuse_too_long(self, n_tokens: int) -> None:
        if self.n_positions is not None and n_tokens > self.n_positions:
            raise RequestError(
                f"Picture, question and answer take {n_tokens} tokens, and this model reads at most "
                f"{self.n_positions}. Ask a shorter question."
            )

    def _pad(self, rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        """Pad rows of ids with 0 (any id does: it is masked); returns ids and a 0/1 mask."""
        length = max(map(len, rows), default=0)
        ids, mask = [], []
        for row in rows:
            gap = [0] * (length - len(row))
            ids.append(gap + row if left else row + gap)
            mask.append(gap + [1] * len(row) if left else [1] * len(row) + gap)
        return torch.tensor(ids, device=self.device).long(), torch.tensor(mask, device=self.device).long()


class Answers:
    """The tokens that rows of a batch have been answered with so far, each up to its end token."""

    def __init__(self, n: int, ends: Sequence[int], max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        self._ends, self._left = set(ends), max_new_tokens
        self.tokens: list[list[int]] = [[] for _ in range(n)]
        self._logits: list[list[Tensor]] = [[] for _ in range(n)]
        self._done = [False] * n

    def add(self, logits: Float[Tensor, "n n_vocab"]) -> Tensor | None:
        """Take the likeliest tokens; returns them (n,), or None where no row goes on."""
        chosen = logits.argmax(-1)
        for i, token in enumerate(chosen.tolist()):
            if not self._done[i]:
                self.tokens[i].append(token)
                self._logits[i].append(logits[i])
                self._done[i] = token in self._ends
        self._left -= 1
        return None if all(self._done) or not self._left else chosen

    @property
    def logits(self) -> list[Float[Tensor, "n_new n_vocab"]]:
        return [torch.stack(rows) for rows in self._logits]
