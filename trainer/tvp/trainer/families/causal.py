"""Families with a decoder-only language model, which reads image embeddings among its tokens."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from tvp.sdk.errors import RequestError

from .family import Answers, GenerativeFamily


class CausalFamily(GenerativeFamily):
    """A family with a decoder-only language model.

    A subclass defines `decoder`, and if its positions are unusual also `positions`, `decoder_positions` or `advance`.

    Attributes:
        position_axes: positions of a token: 1; 2 as in VisualGLM; or 3 as in Qwen2-VL (see their `positions`).
        n_causal: None if every token sees only the tokens before it. With a number, all tokens of the prompt see each
            other (prefix attention), except this many at its end, which see only the tokens before them.
    """

    kind = "causal"
    position_axes = 1
    n_causal: int | None = None

    @property
    def decoder(self) -> nn.Module:
        """The stack of layers from `inputs_embeds` to hidden states."""
        raise NotImplementedError

    @property
    def head(self) -> nn.Module | None:
        """The layer that makes logits; None where transformers does not say which it is."""
        return self.model.get_output_embeddings()  # type: ignore[no-any-return]

    @property
    def scorer(self) -> nn.Module | None:
        """The model of transformers whose own forward makes logits of embeddings; None where TVP wrote the model."""
        return self.model  # type: ignore[no-any-return]

    def to_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states (…, n_text), with what the model does behind its head."""
        return self.head(hidden) if self.head is not None and self.head_is_last else self._scored(hidden)

    @cached_property
    @torch.no_grad()
    def head_is_last(self) -> bool:
        """Whether the head alone makes the logits. Some models divide them, cap them, or have a layer more."""
        if self.scorer is None:
            return True
        head = self.head
        if not isinstance(head, nn.Linear):
            return False
        hidden = 10 * torch.randn(1, 1, head.in_features, generator=torch.Generator().manual_seed(0))
        hidden = hidden.to(head.weight)
        return torch.equal(head(hidden), self._scored(hidden))

    def _scored(self, hidden: Tensor) -> Tensor:
        """Run what follows the decoder in transformers' own forward, whatever that is."""
        rows = hidden if hidden.ndim == 3 else hidden[None]
        read = _Read([rows])
        base: Any = self.scorer.base_model  # type: ignore[union-attr]
        with ExitStack() as stack:
            for module in {base, self.decoder} - {self.scorer}:  # OPT's head calls the second
                stack.enter_context(mock.patch.object(module, "forward", lambda *_, **__: read))  # noqa: PT008
            logits: Tensor = self.scorer(inputs_embeds=rows, use_cache=False).logits  # type: ignore[misc]
        return logits if hidden.ndim == 3 else logits[0]

    @torch.no_grad()
    def own_logits(self, inputs: Tensor, n_context: int, n_before: int, n_image: int) -> Tensor:
        """Return the logits of every position, as transformers' own forward makes them, in one run without a cache.

        Nothing of TVP takes part but the embeddings, the positions and the mask. The parity gate compares with it.

        Args:
            inputs: embeddings of picture, question and answer, (1, length, n_text).
            n_context: those of picture and question.
            n_before, n_image: as in `positions`.

        Returns:
            Logits (1, length, n_vocab).
        """
        real = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        context = torch.tensor([n_context], device=inputs.device)
        positions = self.positions(real, context, n_before, n_image)
        if self.scorer is None:
            return self.to_logits(self.decode(inputs, real, positions, context))
        return self.scorer(  # type: ignore[no-any-return]
            inputs_embeds=inputs,
            attention_mask=self.attention(real, context, inputs.shape[1]),
            use_cache=False,
            **self.with_positions(self.scorer, positions),
        ).logits

    @torch.no_grad()
    def own_answer_logits(self, embeddings: Tensor, question: str, tokens: Sequence[int]) -> Tensor:
        before, after = self.prompt_ids(question)
        text = torch.tensor([[*after, *tokens[:-1]]], device=self.device)
        inputs = self._join(before, embeddings, text)
        n_context = inputs.shape[1] - len(tokens) + 1
        return self.own_logits(inputs, n_context, len(before), embeddings.shape[1])[0, n_context - 1 :]

    def with_positions(self, module: nn.Module, positions: Tensor) -> dict[str, Tensor]:
        """Return the positions as an argument of a module; nothing for one that counts the tokens of the mask."""
        if not takes(module, "position_ids"):
            return {}
        return {"position_ids": self.decoder_positions(positions)}

    def positions(self, real: Tensor, n_context: Tensor, n_before: int, n_image: int) -> Tensor:
        """Return the positions of a padded prompt, with or without an answer after it.

        Args:
            real: (n, length), 1 for tokens and 0 for padding, which is on one side.
            n_context: (n,), number of columns from the left that are padding or prompt.
            n_before: tokens before the image embeddings.
            n_image: image embeddings.

        Returns:
            (n, length); or (position_axes, n, length) if there are several.
        """
        return (real.cumsum(1) - 1).clamp(min=0)

    def advance(self, position: Tensor, n: Tensor | int) -> Tensor:
        """Return the positions of tokens that are n places after the one at `position`."""
        return position + n

    def decoder_positions(self, positions: Tensor) -> Tensor:
        """Turn the result of `positions` into the decoder's own argument; exported graphs do so too."""
        return positions

    def attention(self, real: Tensor, n_context: Tensor | None, n_new: int) -> Tensor:
        """Return the decoder's attention mask.

        Args:
            real: (n, length), 1 for tokens and 0 for padding.
            n_context: (n,), number of columns from the left that are padding or prompt; None if no new column belongs
                to the prompt.
            n_new: columns at the right end that are new; the cache holds the others.
        """
        if self.n_causal is None:
            return real
        context = None if n_context is None else n_context - self.n_causal
        return prefix_attention(real, context, n_new, next(self.decoder.parameters()).dtype)

    def decode(
        self,
        inputs: Tensor,
        real: Tensor,
        positions: Tensor,
        n_context: Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> Float[Tensor, "n n_new n_text"]:
        """Run the decoder on new inputs (n, n_new, n_text) after those in the cache; returns hidden states."""
        return self.decoder(  # type: ignore[no-any-return]
            inputs_embeds=inputs,
            attention_mask=self.attention(real, n_context, inputs.shape[1]),
            past_key_values=cache,
            use_cache=cache is not None,
            **self.with_positions(self.decoder, positions),
        ).last_hidden_state

    def answer_loss(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        answers: Sequence[str],
        candidates: Sequence[Sequence[str]] = (),
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy. The head runs only at the positions of the answers.

        Rows are padded on the right, where a causal decoder never looks.
        """
        prompts = [self.prompt_ids(question) for question in questions]
        asked = [after for _, after in prompts]
        answered = [self.answer_ids(answer) for answer in answers]
        text, real = self._pad([a + b[:-1] for a, b in zip(asked, answered, strict=True)], left=False)
        inputs = self._join(prompts[0][0], embeddings, text)
        n_before = inputs.shape[1] - text.shape[1]
        real = F.pad(real, [n_before, 0], value=1)
        n_context = torch.tensor([n_before + len(question) for question in asked], device=real.device)
        positions = self.positions(real, n_context, len(prompts[0][0]), embeddings.shape[1])
        hidden = self.decode(inputs, real, positions, n_context)
        row: list[int] = []
        position: list[int] = []
        wanted: list[int] = []
        for i, (question, answer) in enumerate(zip(asked, answered, strict=True)):
            start = n_before + len(question) - 1
            row += [i] * len(answer)
            position += range(start, start + len(answer))
            wanted += answer
        logits = self.to_logits(hidden[row, position]).to(self.device)
        return F.cross_entropy(logits.float(), torch.tensor(wanted, device=logits.device))

    def answer_scores(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        candidates: Sequence[str],
        at_once: int = 256,
    ) -> Float[Tensor, "n n_candidates"]:
        """Return mean log-probabilities. Picture and question run once; candidates continue copies of the cache."""
        if not candidates:
            raise RequestError("There are no candidates to score; give at least one answer text.")
        answered = [self.answer_ids(candidate) for candidate in candidates]
        cache, positions, mask, logits = self._prefill(embeddings, questions, max(map(len, answered)) - 1)
        total = logits.float().log_softmax(-1)[:, [ids[0] for ids in answered]]  # (n, n_candidates)
        size = max(1, at_once // len(questions))
        rest = [
            self._continued(
                cache if start + size >= len(answered) else copy.deepcopy(cache),
                positions,
                mask,
                answered[start : start + size],
            )
            for start in range(0, len(answered), size)
        ]
        counts = torch.tensor([len(ids) for ids in answered], device=self.device)
        return (total + torch.cat(rest, 1)) / counts

    def _continued(
        self, cache: DynamicCache, positions: Tensor, mask: Tensor, answered: Sequence[list[int]]
    ) -> Float[Tensor, "n n_candidates"]:
        """Return the summed log-probabilities of all tokens of the answers but the first; uses the cache up."""
        n, n_candidates = len(mask), len(answered)
        text, real = self._pad([ids[:-1] for ids in answered], left=False)
        total = torch.zeros(n, n_candidates, device=self.device)
        length = text.shape[1]
        if length:
            cache.batch_repeat_interleave(n_candidates)
            steps = torch.arange(length, device=self.device)
            every = torch.cat([mask.repeat_interleave(n_candidates, 0), real.repeat(n, 1)], 1)
            further = self.advance(positions[..., -1:], 1 + steps)
            hidden = self.decode(
                self.embed_tokens(text.repeat(n, 1)), every, further.repeat_interleave(n_candidates, -2), cache=cache
            )
            wanted, _ = self._pad([ids[1:] for ids in answered], left=False)
            rest = self.to_logits(hidden).to(self.device).float().log_softmax(-1)
            rest = rest.gather(-1, wanted.repeat(n, 1)[:, :, None])[:, :, 0] * real.repeat(n, 1)
            total = rest.sum(-1).view(n, n_candidates)
        return total

    @torch.no_grad()
    def generate_tokens(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> tuple[list[list[int]], list[Float[Tensor, "n_new n_vocab"]]]:
        """Answer greedily; returns the token ids of each row, end token included, and their logits."""
        cache, positions, real, logits = self._prefill(embeddings, questions, max_new_tokens - 1)
        answers = Answers(len(questions), self.layout.end, max_new_tokens)
        position = positions[..., -1:]
        while (chosen := answers.add(logits)) is not None:
            position = self.advance(position, 1)
            real = F.pad(real, [0, 1], value=1)
            hidden = self.decode(self.embed_tokens(chosen[:, None]), real, position, cache=cache)
            logits = self.to_logits(hidden[:, -1]).to(self.device)
        return answers.tokens, answers.logits

    def _join(
        self, before: list[int], embeddings: Tensor, text: Tensor, n_more: int = 0
    ) -> Float[Tensor, "n n_all n_text"]:
        self._refuse_too_long(len(before) + embeddings.shape[1] + text.shape[1] + n_more)
        prefix = self.embed_tokens(torch.tensor(before, device=text.device).long())
        parts = [prefix.expand(len(text), -1, -1), embeddings, self.embed_tokens(text)]
        return torch.cat([part.to(embeddings.device) for part in parts], 1)

    def _prefill(
        self, embeddings: Tensor, questions: Sequence[str], n_more: int
    ) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
        """Run picture and question; returns the cache, positions, mask and the last logits.

        Rows are aligned at their last token. All padding is on the left, and positions start after it.

        Args:
            embeddings: of each question's picture.
            questions: the texts.
            n_more: tokens that will follow and need room.
        """
        prompts = [self.prompt_ids(question) for question in questions]
        text, real = self._pad([after for _, after in prompts], left=True)
        inputs = self._join(prompts[0][0], embeddings, text, n_more)
        length = inputs.shape[1]
        n_before = length - text.shape[1]
        n_missing = (real == 0).sum(1)
        # Move the padding of each row from between picture and question to the far left.
        columns = torch.arange(length, device=inputs.device).expand(len(text), -1)
        source = columns - n_missing[:, None]
        source = torch.where(columns >= n_before + n_missing[:, None], columns, source)
        mask = (source >= 0).long()
        inputs = inputs.gather(1, source.clamp(min=0)[:, :, None].expand(-1, -1, inputs.shape[-1]))
        n_context = mask.new_full((len(mask),), length)
        positions = self.positions(mask, n_context, len(prompts[0][0]), embeddings.shape[1])
        cache = DynamicCache()
        hidden = self.decode(inputs, mask, positions, n_context, cache)
        # A model that is spread over devices may end on another device than it began on.
        return cache, positions, mask, self.to_logits(hidden[:, -1]).to(self.device)


class _Read(tuple):  # type: ignore[type-arg]
    """What a decoder returns: hidden states, and None for everything else that a model may ask for."""

    @property
    def last_hidden_state(self) -> Any:
        return self[0]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self)

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def takes(module: nn.Module, argument: str) -> bool:
    """Return whether a module's forward has an argument of this name."""
    return argument in inspect.signature(module.forward).parameters


def prefix_attention(real: Tensor, n_context: Tensor | None, n_new: int, dtype: torch.dtype) -> Tensor:
    """Return an additive mask (n, 1, n_new, length): the context sees all of itself, later tokens see the past.

    Args:
        real, n_context, n_new: as in `CausalFamily.attention`.
        dtype: of the mask.
    """
    length = real.shape[1]
    column = torch.arange(length, device=real.device)
    row = column[length - n_new :]
    visible = (column[None, :] <= row[:, None]).expand(len(real), -1, -1)
    if n_context is not None:
        inside = column < n_context[:, None]  # (n, length)
        visible = visible | (inside[:, None, :] & inside[:, length - n_new :, None])
    visible = visible & real.bool()[:, None, :]
    return torch.zeros(visible.shape, dtype=dtype, device=real.device).masked_fill(~visible, torch.finfo(dtype).min)[
        :, None
    ]
