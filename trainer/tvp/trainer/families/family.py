"""Model families: one way each of wiring a vision encoder to a language model, with the same few functions.

The trainer, the evaluation and the exporter all use them. The order of the tokens that a model sees is written down
once, in `tvp.sdk.formats.layout`.
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
N_TEXTS = 4096  # texts whose tokens a family remembers, of questions and of answers

# Settings that would change greedy answers or scores -> the value that changes nothing; None does not either.
IGNORED: dict[str, Any] = {
    "num_beams": 1, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "min_length": 0, "min_new_tokens": 0, "bad_words_ids": [], "suppress_tokens": [], "begin_suppress_tokens": [],
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "sequence_bias": None, "guidance_scale": 1.0, "stop_strings": None, "force_words_ids": None, "constraints": None,
    "forced_decoder_ids": None, "penalty_alpha": 0.0, "dola_layers": None, "watermarking_config": None,
    "token_healing": False, "num_beam_groups": 1, "diversity_penalty": 0.0,
}  # fmt: skip
IGNORED_OF_TEXT = {"attn_logit_softcapping": None}  # by transformers' own sdpa attention too


class Family:
    """A frozen model: what it sees, and what it answers.

    A family defines `encode` and `connect`. Everything that depends on the language model is in the three classes
    `CausalFamily`, `Seq2SeqFamily` and `ContrastiveFamily`.

    Args:
        model: the module, which is frozen.
        pixel_format: the pixels that its vision encoder takes.

    Attributes:
        name: of the family, in messages and in bundles.
        kind: `causal`, `seq2seq` or `contrastive`.
        reads_question: whether the image embeddings depend on the question, as InstructBLIP's do.
        generates: whether it writes free text; if not, it only chooses among given answers.
        exports: whether the exporter can write it.
        encoder_batches: whether its exported vision encoder takes any number of pictures, or one.
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

    # From pixels to image embeddings.

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n ... n_features"]:
        """Return the features of the vision encoder, which do not depend on a question."""
        raise NotImplementedError

    def compile(self) -> None:
        """Compile `encode` with `torch.compile`: the same values up to rounding, after a slow first call."""
        self.encode = torch.compile(self.encode)  # type: ignore[method-assign]

    def connect(
        self, features: Float[Tensor, "n ... n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """Return the image embeddings that the language model reads.

        Args:
            features: from `encode`.
            questions: one for each row of features; only a family that `reads_question` needs them.
        """
        raise NotImplementedError

    def connect_rows(
        self, features: Float[Tensor, "n_pictures ... n_features"], rows: Int[Tensor, " n"], questions: Sequence[str]
    ) -> Float[Tensor, "n n_image n_text"]:
        """Return the image embeddings for each question.

        The connector runs once for each picture, or if it reads the question once for each question.

        Args:
            features: of the pictures, from `encode`.
            rows: for each question the index of its picture.
            questions: the texts.
        """
        # Not features[rows], whose backward adds up in any order, with other bits each time.
        # Parts of a model that is spread over devices may be on another device than the rows.
        if self.reads_question:
            return self.connect(features.index_select(0, rows.to(features.device)), questions).to(rows.device)
        return self.connect(features).to(rows.device).index_select(0, rows)

    # From image embeddings to answers.

    def answer_loss(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        answers: Sequence[str],
        candidates: Sequence[Sequence[str]] = (),
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy over all tokens of the answers, end tokens included.

        Args:
            embeddings: of each question's picture.
            questions: the texts.
            answers: the right answers.
            candidates: for each question the answers to choose from. Contrastive families need them, others do not
                read them.
        """
        raise NotImplementedError

    def answer_scores(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        candidates: Sequence[str],
        at_once: int = 256,
    ) -> Float[Tensor, "n n_candidates"]:
        """Return for each question the mean log-probability of each candidate's tokens, end token included.

        Args:
            embeddings: of each question's picture.
            questions: the texts.
            candidates: the answers to score.
            at_once: rows (a question with one candidate) that the language model reads at once. Default 256.
        """
        raise NotImplementedError

    def generate(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        """Answer greedily.

        Args:
            embeddings: of each question's picture.
            questions: the texts.
            max_new_tokens: most tokens of an answer. Default 16.

        Returns:
            The texts, without special tokens and without spaces around them.
        """
        raise NotImplementedError

    def n_answer_tokens(self, answers: Sequence[str]) -> int:
        """Return the number of terms in the mean of `answer_loss`: tokens, or of a contrastive family answers."""
        return len(answers)

    def check_question(
        self, question: str, answer: str, labels: Sequence[str], n_image: int = 0, n_written: int = 0
    ) -> None:
        """Check that the model can be asked a question, without asking it.

        Args:
            question: the text.
            answer: the right answer.
            labels: the answers to choose from; none for a free answer.
            n_image: image embeddings of a picture. Default 0.
            n_written: most tokens of a free answer; 0 for none. Default 0.

        Raises:
            RequestError: it cannot be asked.
        """

    # The same in all families.

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        # A language model that was left on the disk is on no device.
        return next(p.device for p in self.model.parameters() if not p.is_meta)  # type: ignore[no-any-return]

    def to_pixels(self, canvas: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Map canvases in [0, 1] to the pixels that the vision encoder takes, in the weights' type; differentiable."""
        return to_pixels(canvas, self.pixel_format).to(self.dtype)

    def see(
        self, pixels: Float[Tensor, "n 3 size size"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """Return the image embeddings that the language model reads: `encode` and `connect` in one."""
        return self.connect(self.encode(pixels), questions)


class GenerativeFamily(Family):
    """A family that reads and writes tokens. A subclass defines `make_layout`.

    Args:
        model: the module.
        tokenizer: of the language model.
        pixel_format: the pixels that the vision encoder takes.
        template: the checkpoint's chat template. Default: none.
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
        # A task asks the same few questions at every step, and tokenising costs as much as a small layer.
        self._prompt_ids = lru_cache(N_TEXTS)(self._prompt_tokenizer.prompt_ids)
        self._answer_ids = lru_cache(N_TEXTS)(self._prompt_tokenizer.answer_ids)

    def make_layout(self) -> PromptLayout:
        """Return the order of the tokens that the language model reads."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        # Not the first parameter's type: in fp16 transformers keeps the queries of a Q-Former in fp32.
        return self.embed_tokens.weight.dtype  # type: ignore[return-value]

    @property
    def embed_tokens(self) -> torch.nn.Module:
        return self.model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer: the checkpoint's own (BLIP-2 ends at a line break), else the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        ends = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
        if not ends:
            raise ModelError("Neither generation_config.json nor the tokenizer says which token ends an answer.")
        n = len(self.embed_tokens.weight)  # type: ignore[arg-type]
        if not all(isinstance(end, int) and 0 <= end < n for end in ends):
            raise ModelError(
                f"The answers of this checkpoint end with the tokens {ends}, but its tokens have the ids 0 to {n - 1}. "
                "Correct eos_token_id in generation_config.json, or take the tokenizer of the same release."
            )
        # Training teaches the first one: of several, the one that ends a turn in the model's chats.
        return tuple(sorted(ends, key=lambda end: end != self.tokenizer.eos_token_id))

    @property
    def ignored_settings(self) -> list[str]:
        """The checkpoint's settings for answers and scores that TVP ignores, each as `name=value`.

        An answer is always the likeliest tokens, as the head scores them.
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
        """The most tokens that the language model reads; None if there is no limit."""
        return getattr(self.text_config, "max_position_embeddings", None)

    def image_token(self, token_id: int | None) -> str:
        """Return the text of the token that stands for the image while a prompt is tokenised; '' if there is none."""
        tokenizer = self.tokenizer
        if token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
            return ""
        return str(tokenizer.added_tokens_decoder.get(token_id, ""))

    def generate_tokens(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> tuple[list[list[int]], list[Float[Tensor, "n_new n_vocab"]]]:
        """Answer greedily; returns the token ids of each row, end token included, and their logits."""
        raise NotImplementedError

    def own_answer_logits(self, embeddings: Tensor, question: str, tokens: Sequence[int]) -> Tensor:
        """Return the logits of each token of an answer, as transformers' own forward makes them, in one run.

        Args:
            embeddings: of the picture, (1, n_image, n_text).
            question: the text.
            tokens: of the answer.

        Returns:
            Logits (n_tokens, n_vocab).
        """
        raise NotImplementedError

    @torch.no_grad()
    def generate(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        tokens, _ = self.generate_tokens(embeddings, questions, max_new_tokens)
        return [self.text(row) for row in tokens]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer's tokens, as the sdk does; the end token need not be a special token."""
        if tokens and tokens[-1] in self.layout.end:
            tokens = tokens[:-1]
        decoded: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded.strip()

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Return the token ids before the image embeddings, and those after them up to the answer."""
        before, after = self._prompt_ids(question)
        return before.copy(), after.copy()

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer with its separator and end token: the same in loss and scores."""
        return self._answer_ids(answer).copy()

    def n_answer_tokens(self, answers: Sequence[str]) -> int:
        return sum(len(self.answer_ids(answer)) for answer in answers)

    def check_question(
        self, question: str, answer: str, labels: Sequence[str], n_image: int = 0, n_written: int = 0
    ) -> None:
        n_answer = max(n_written, *(len(self.answer_ids(text)) for text in (answer, *labels)))
        n_read = 0 if self.layout.apart else n_answer - 1  # the last token of an answer is never read
        self._refuse_too_long(n_image + sum(map(len, self.prompt_ids(question))) + n_read)

    def _refuse_too_long(self, n_tokens: int) -> None:
        if self.n_positions is not None and n_tokens > self.n_positions:
            raise RequestError(
                f"Picture, question and answer take {n_tokens} tokens, but this model reads at most "
                f"{self.n_positions}. Take a shorter question or answer."
            )

    def _pad(self, rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        """Pad rows of ids with 0, which is masked; returns the ids and a 0/1 mask."""
        length = max(map(len, rows), default=0)
        ids, mask = [], []
        for row in rows:
            gap = [0] * (length - len(row))
            ids.append(gap + row if left else row + gap)
            mask.append(gap + [1] * len(row) if left else [1] * len(row) + gap)
        return torch.tensor(ids, device=self.device).long(), torch.tensor(mask, device=self.device).long()


class Answers:
    """The answers of a batch while they are generated.

    Args:
        n: number of rows.
        ends: ids of the tokens that end an answer.
        max_new_tokens: most tokens of an answer.

    Raises:
        RequestError: `max_new_tokens` is below 1.
    """

    def __init__(self, n: int, ends: Sequence[int], max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        self._ends, self._left = set(ends), max_new_tokens
        self.tokens: list[list[int]] = [[] for _ in range(n)]
        self._logits: list[list[Tensor]] = [[] for _ in range(n)]
        self._done = [False] * n

    def add(self, logits: Float[Tensor, "n n_vocab"]) -> Tensor | None:
        """Add each row's likeliest token; returns them, (n,), or None if all answers have ended."""
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
