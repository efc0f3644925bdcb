"""Families whose language model is a decoder that reads image embeddings among its tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from tvp.sdk.errors import RequestError

from .family import Answers, GenerativeFamily


class CausalFamily(GenerativeFamily):
    """A subclass gives `decoder`; and where its decoder differs, `positions`, `decoder_positions` or `advance`.

    position_axes: how many positions a token has; with 2 they are as VisualGLM's, with 3 as Qwen2-VL's (see their
        `positions`).
    n_causal: how many tokens at a prompt's end see only what is before them, as an answer's do, while all others of
        the prompt see each other (prefix attention); None where every token sees only what is before it.
    """

    kind = "causal"
    position_axes = 1
    n_causal: int | None = None

    @property
    def decoder(self) -> nn.Module:
        """The stack of layers that maps `inputs_embeds` to hidden states."""
        raise NotImplementedError

    @property
    def head(self) -> nn.Module:
        return self.model.get_output_embeddings()  # type: ignore[no-any-return]

    def positions(self, real: Tensor, n_context: Tensor, n_before: int, n_image: int) -> Tensor:
        """Positions of a padded prompt, with or without an answer behind it.

        real: 0/1 mask (n, length), padded on one side; n_context: (n,) columns from the left that are
        padding and prompt; n_before: tokens before the image embeddings.
        Returns (n, length), or (axes, n, length) for a model with several positions a token.
        """
        return (real.cumsum(1) - 1).clamp(min=0)

    def advance(self, position: Tensor, n: Tensor | int) -> Tensor:
        """Positions of the n-th further tokens after one at `position`."""
        return position + n

    def decoder_positions(self, positions: Tensor) -> Tensor:
        """What the decoder itself takes, of what `positions` gives; the exported graph ends in it too."""
        return positions

    def attention(self, real: Tensor, n_context: Tensor | None, n_new: int) -> Tensor:
        """What the decoder gets as its mask when the last n_new of the columns of `real` are new.

        n_context: (n,) columns from the left that are padding and prompt, which a model with prefix
            attention lets see each other; None when no new column belongs to the prompt.
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
        """Run the decoder over new inputs (n, n_new, n_text) behind what the cache holds; returns hidden states."""
        return self.decoder(  # type: ignore[no-any-return]
            inputs_embeds=inputs,
            attention_mask=self.attention(real, n_context, inputs.shape[1]),
            position_ids=self.decoder_positions(positions),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def answer_loss(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        answers: Sequence[str],
        candidates: Sequence[Sequence[str]] = (),
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy; the language-model head runs over the answers' positions only.

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
        logits = self.head(hidden[row, position]).to(self.device)
        return F.cross_entropy(logits.float(), torch.tensor(wanted, device=logits.device))

    @torch.no_grad()
    def answer_scores(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        candidates: Sequence[str],
        at_once: int = 256,
    ) -> Float[Tensor, "n n_candidates"]:
        """Mean log-probabilities. Picture and question run once; the candidates continue copies of their cache."""
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
        """Summed log-probabilities of answers' tokens behind their first; the cache is used up."""
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
            rest = self.head(hidden).to(self.device).float().log_softmax(-1)
            rest = rest.gather(-1, wanted.repeat(n, 1)[:, :, None])[:, :, 0] * real.repeat(n, 1)
            total = rest.sum(-1).view(n, n_candidates)
        return total

    @torch.no_grad()
    def generate_tokens(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> tuple[list[list[int]], list[Float[Tensor, "n_new n_vocab"]]]:
        """Answer greedily; returns each row's token ids (end token included) and their logits."""
        cache, positions, real, logits = self._prefill(embeddings, questions, max_new_tokens - 1)
        answers = Answers(len(questions), self.layout.end, max_new_tokens)
        position = positions[..., -1:]
        while (chosen := answers.add(logits)) is not None:
            position = self.advance(position, 1)
            real = F.pad(real, [0, 1], value=1)
            hidden = self.decode(self.embed_tokens(chosen[:, None]), real, position, cache=cache)
            logits = self.head(hidden[:, -1]).to(self.device)
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

        n_more: tokens that will follow, for which there must be room.

        Rows are aligned on their last token by padding between picture and start, so the padding
        sits on the left of everything and positions start behind it.
        """
        prompts = [self.prompt_ids(question) for question in questions]
        text, real = self._pad([after for _, after in prompts], left=True)
        inputs = self._join(prompts[0][0], embeddings, text, n_more)
        length = inputs.shape[1]
        n_before = length - text.shape[1]
        n_missing = (real == 0).sum(1)
        # Move each row's padding from between picture and question to the far left.
        columns = torch.arange(length, device=inputs.device).expand(len(text), -1)
        source = columns - n_missing[:, None]
        source = torch.where(columns >= n_before + n_missing[:, None], columns, source)
        mask = (source >= 0).long()
        inputs = inputs.gather(1, source.clamp(min=0)[:, :, None].expand(-1, -1, inputs.shape[-1]))
        n_context = mask.new_full((len(mask),), length)
        positions = self.positions(mask, n_context, len(prompts[0][0]), embeddings.shape[1])
        cache = DynamicCache()
        hidden = self.decode(inputs, mask, positions, n_context, cache)
        # A model that is spread over devices may end on another than it began on.
        return cache, positions, mask, self.head(hidden[:, -1]).to(self.device)


def prefix_attention(real: Tensor, n_context: Tensor | None, n_new: int, dtype: torch.dtype) -> Tensor:
    """An additive mask (n, 1, n_new, length): the context sees all of itself, what follows is causal.

    real, n_context, n_new: as in `CausalFamily.attention`.
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
