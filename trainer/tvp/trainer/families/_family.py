"""What a model family is: one way of wiring an eye to a language model, behind five functions.

The trainer, the evaluator and the exporter all go through this interface, so the order of the
tokens that a model sees is written down once: in `tvp.sdk._layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from tvp.sdk._layout import Layout, Words
from tvp.sdk.errors import ModelError, RequestError


@dataclass(frozen=True)
class PixelFormat:
    """What a vision encoder takes: a square of `size` pixels, (value - mean) / std by channel."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


BICUBIC = 3  # Pillow's number for it


def to_pixels(canvas: Float[Tensor, "n 3 height width"], format: PixelFormat) -> Float[Tensor, "n 3 size size"]:
    """Resize (bicubic, antialiased) and normalise a canvas in [0, 1]; differentiable.

    Pillow filters along the width, then the height, and clips the overshoot of its bicubic filter at
    black and white after each; so does this, except that a prompt in the `free` range may lie outside
    of [0, 1], and then its own extremes are the bounds.
    """
    if canvas.shape[-2:] != (format.size, format.size):
        low = canvas.detach().amin().clamp(max=0.0)
        high = canvas.detach().amax().clamp(min=1.0)
        for size in ((canvas.shape[-2], format.size), (format.size, format.size)):  # width, then height
            canvas = F.interpolate(canvas, size, mode="bicubic", antialias=True)
            canvas = torch.minimum(torch.maximum(canvas, low), high)
    mean, std = (canvas.new_tensor(v).view(1, 3, 1, 1) for v in (format.mean, format.std))
    return (canvas - mean) / std


class CausalFamily:
    """A family whose language model is a decoder that reads image embeddings among its tokens.

    A subclass sets `name`, and gives `layout`, `see` and `decoder`; the rest is the same for all.
    """

    name = ""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, pixel_format: PixelFormat) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.pixel_format = pixel_format
        self.layout = self.make_layout()
        self._words = Words(
            self.layout,
            lambda text, special: tokenizer(text, add_special_tokens=special).input_ids,
            frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special),
        )

    # What a subclass gives.

    def make_layout(self) -> Layout:
        raise NotImplementedError

    def see(
        self, pixels: Float[Tensor, "n 3 size size"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """Return the image embeddings as they enter the language model."""
        raise NotImplementedError

    @property
    def decoder(self) -> nn.Module:
        """The stack of layers that maps `inputs_embeds` to hidden states."""
        raise NotImplementedError

    # What all share.

    @property
    def embed_tokens(self) -> nn.Module:
        return self.model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def head(self) -> nn.Module:
        return self.model.get_output_embeddings()  # type: ignore[no-any-return]

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """What ends an answer: the checkpoint's own choice (BLIP-2 ends at a line break), else the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.tokenizer.eos_token_id
        return tuple(ends) if isinstance(ends, list) else (ends,)

    @property
    def text_config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def to_pixels(self, canvas: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        """Map canvases in [0, 1] to what the vision encoder takes; differentiable."""
        return to_pixels(canvas, self.pixel_format)

    def answer_loss(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], answers: Sequence[str]
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy over the answers' tokens, the end token included.

        The language-model head runs over the answers' positions only. Rows are padded on the right,
        where a causal decoder never looks.
        """
        prompts = [self.prompt_ids(question) for question in questions]
        asked = [after for _, after in prompts]
        answered = [self.answer_ids(answer) for answer in answers]
        rows = [a + b[:-1] for a, b in zip(asked, answered, strict=True)]
        text, _ = self._pad(rows, left=False)
        inputs = self._join(prompts[0][0], embeddings, text)
        hidden = self.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
        n_before = inputs.shape[1] - text.shape[1]
        row: list[int] = []
        position: list[int] = []
        wanted: list[int] = []
        for i, (question, answer) in enumerate(zip(asked, answered, strict=True)):
            start = n_before + len(question) - 1
            row += [i] * len(answer)
            position += range(start, start + len(answer))
            wanted += answer
        logits = self.head(hidden[row, position])
        return F.cross_entropy(logits, torch.tensor(wanted, device=logits.device))

    @torch.no_grad()
    def answer_scores(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], candidates: Sequence[str]
    ) -> Float[Tensor, "n n_candidates"]:
        """Return the mean log-probability of each candidate's tokens, the end token included.

        Picture and question run once; the candidates continue copies of their keys and values.
        """
        if not candidates:
            raise RequestError("There are no candidates to score; give at least one answer text.")
        cache, positions, mask, logits = self._prefill(embeddings, questions)
        n, n_candidates = len(questions), len(candidates)
        answered = [self.answer_ids(candidate) for candidate in candidates]
        text, real = self._pad([ids[:-1] for ids in answered], left=False)
        first = logits.log_softmax(-1)[:, [ids[0] for ids in answered]]  # (n, n_candidates)
        length = text.shape[1]
        total = first.clone()
        if length:
            cache.batch_repeat_interleave(n_candidates)
            steps = torch.arange(length, device=self.device)
            hidden = self.decoder(
                inputs_embeds=self.embed_tokens(text.repeat(n, 1)),
                attention_mask=torch.cat([mask.repeat_interleave(n_candidates, 0), real.repeat(n, 1)], 1),
                position_ids=(positions[:, -1:] + 1 + steps).repeat_interleave(n_candidates, 0),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            wanted, _ = self._pad([ids[1:] for ids in answered], left=False)
            rest = self.head(hidden).log_softmax(-1)
            rest = rest.gather(-1, wanted.repeat(n, 1)[:, :, None])[:, :, 0] * real.repeat(n, 1)
            total = total + rest.sum(-1).view(n, n_candidates)
        counts = torch.tensor([len(ids) for ids in answered], device=self.device)
        return total / counts

    @torch.no_grad()
    def generate(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        """Answer greedily; returns the texts, stripped of spaces and special tokens."""
        tokens, _ = self.generate_tokens(embeddings, questions, max_new_tokens)
        return [self.text(row) for row in tokens]

    @torch.no_grad()
    def generate_tokens(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> tuple[list[list[int]], list[Float[Tensor, "n_new n_vocab"]]]:
        """Answer greedily; returns each row's token ids (end token included) and their logits."""
        cache, positions, mask, logits = self._prefill(embeddings, questions)
        n = len(questions)
        ends = set(self.layout.end)
        tokens: list[list[int]] = [[] for _ in range(n)]
        seen: list[list[Tensor]] = [[] for _ in range(n)]
        done = [False] * n
        position = positions[:, -1:]
        for step in range(max_new_tokens):
            chosen = logits.argmax(-1)
            for i, token in enumerate(chosen.tolist()):
                if not done[i]:
                    tokens[i].append(token)
                    seen[i].append(logits[i])
                    done[i] = token in ends
            if all(done) or step + 1 == max_new_tokens:
                break
            position = position + 1
            mask = torch.cat([mask, mask.new_ones(n, 1)], 1)
            hidden = self.decoder(
                inputs_embeds=self.embed_tokens(chosen[:, None]),
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = self.head(hidden[:, -1])
        return tokens, [torch.stack(rows) for rows in seen]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, as the sdk gives it."""
        decoded: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded.strip()

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the image embeddings, up to where the answer starts."""
        return self._words.prompt_ids(question)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer with its separator and its end token: the same in loss and scores."""
        return self._words.answer_ids(answer)

    def _join(self, before: list[int], embeddings: Tensor, text: Tensor) -> Float[Tensor, "n n_all n_text"]:
        n_all, n_positions = len(before) + embeddings.shape[1] + text.shape[1], self.text_config.max_position_embeddings
        if n_all > n_positions:
            raise RequestError(
                f"Picture, question and answer take {n_all} tokens, and this model reads at most {n_positions}. "
                "Ask a shorter question."
            )
        prefix = self.embed_tokens(torch.tensor(before, device=text.device).long())
        return torch.cat([prefix.expand(len(text), -1, -1), embeddings, self.embed_tokens(text)], 1)

    def _prefill(self, embeddings: Tensor, questions: Sequence[str]) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
        """Run picture and question; returns the cache, positions, mask and the last logits.

        Rows are aligned on their last token by padding between picture and start, so the padding
        sits on the left of everything and positions start behind it.
        """
        prompts = [self.prompt_ids(question) for question in questions]
        text, real = self._pad([after for _, after in prompts], left=True)
        inputs = self._join(prompts[0][0], embeddings, text)
        n_before = inputs.shape[1] - text.shape[1]
        n_missing = (real == 0).sum(1)
        # Move each row's padding from between picture and question to the far left.
        columns = torch.arange(inputs.shape[1], device=inputs.device).expand(len(text), -1)
        source = columns - n_missing[:, None]
        source = torch.where(columns >= n_before + n_missing[:, None], columns, source)
        mask = (source >= 0).long()
        inputs = inputs.gather(1, source.clamp(min=0)[:, :, None].expand(-1, -1, inputs.shape[-1]))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        hidden = self.decoder(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return cache, positions, mask, self.head(hidden[:, -1])

    def _pad(self, rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        """Pad rows of ids with 0 (any id does: it is masked); returns ids and a 0/1 mask."""
        length = max(map(len, rows), default=0)
        ids, mask = [], []
        for row in rows:
            gap = [0] * (length - len(row))
            ids.append(gap + row if left else row + gap)
            mask.append(gap + [1] * len(row) if left else [1] * len(row) + gap)
        return torch.tensor(ids, device=self.device).long(), torch.tensor(mask, device=self.device).long()


def pixel_format_of(image_processor: Any, size: int) -> PixelFormat:
    """Read mean and standard deviation from a checkpoint's image processor."""
    mean, std = image_processor.image_mean, image_processor.image_std
    if len(mean) != 3 or len(std) != 3:
        raise ModelError(f"The image processor has {len(mean)} channels; TVP prompts have three (RGB).")
    if getattr(image_processor, "resample", BICUBIC) != BICUBIC:
        raise ModelError("The image processor does not resize with bicubic filtering, which is all that TVP exports.")
    return PixelFormat(size, tuple(mean), tuple(std))
