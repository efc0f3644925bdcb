"""Families whose language model is an encoder and a decoder: T5 reads picture and question, then answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import EncoderDecoderCache

from tvp.sdk.errors import RequestError

from .family import Answers, GenerativeFamily


class Seq2SeqFamily(GenerativeFamily):
    """A family with a T5. A subclass makes a layout that is `apart`."""

    kind = "seq2seq"

    @property
    def language_model(self) -> Any:
        """The `T5ForConditionalGeneration`."""
        return self.model.language_model

    def answer_loss(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        answers: Sequence[str],
        candidates: Sequence[Sequence[str]] = (),
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy over the tokens of the answers; rows are padded on the right and masked."""
        states, mask = self._read(embeddings, questions)
        wanted, real = self._pad([self.answer_ids(answer) for answer in answers], left=False)
        logits = self._decode(states, mask, wanted).float()
        return F.cross_entropy(logits[real.bool()], wanted[real.bool()])

    def answer_scores(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        candidates: Sequence[str],
        at_once: int = 256,
    ) -> Float[Tensor, "n n_candidates"]:
        """Return mean log-probabilities. The encoder runs once, the decoder reads candidates in batches."""
        if not candidates:
            raise RequestError("There are no candidates to score; give at least one answer text.")
        states, mask = self._read(embeddings, questions)
        size = max(1, at_once // len(questions))
        parts = [candidates[start : start + size] for start in range(0, len(candidates), size)]
        return torch.cat([self._scores(states, mask, part) for part in parts], 1)

    def _scores(self, states: Tensor, mask: Tensor, candidates: Sequence[str]) -> Float[Tensor, "n n_candidates"]:
        n, n_candidates = len(states), len(candidates)
        wanted, real = (t.repeat(n, 1) for t in self._pad([self.answer_ids(c) for c in candidates], left=False))
        states, mask = (t.repeat_interleave(n_candidates, 0) for t in (states, mask))
        log_probabilities = self._decode(states, mask, wanted).float().log_softmax(-1)
        scores = log_probabilities.gather(-1, wanted[:, :, None])[:, :, 0] * real
        return (scores.sum(-1) / real.sum(-1)).view(n, n_candidates)

    @torch.no_grad()
    def generate_tokens(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> tuple[list[list[int]], list[Float[Tensor, "n_new n_vocab"]]]:
        """Answer greedily; returns the token ids of each row, end token included, and their logits."""
        states, mask = self._read(embeddings, questions)
        answers = Answers(len(questions), self.layout.end, max_new_tokens)
        token: Tensor | None = self._start.expand(len(questions))
        past: EncoderDecoderCache | None = None
        while token is not None:
            output = self.language_model(
                encoder_outputs=(states,),
                attention_mask=mask,
                decoder_input_ids=token[:, None],
                past_key_values=past,
                use_cache=True,
            )
            past = output.past_key_values
            token = answers.add(output.logits[:, -1].to(self.device))
        return answers.tokens, answers.logits

    @torch.no_grad()
    def own_answer_logits(self, embeddings: Tensor, question: str, tokens: Sequence[int]) -> Tensor:
        states, mask = self._read(embeddings, [question])
        return self._decode(states, mask, torch.tensor([list(tokens)], device=self.device))[0]

    @property
    def _start(self) -> Tensor:
        """The id that the decoder starts from, (1,); T5 leaves it to the configuration."""
        return torch.tensor([self.text_config.decoder_start_token_id], device=self.device)

    def _read(self, embeddings: Tensor, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Run the encoder on picture and question; returns its states and their 0/1 mask."""
        text, real = self._pad([self.prompt_ids(question)[1] for question in questions], left=False)
        self._refuse_too_long(embeddings.shape[1] + text.shape[1])
        mask = F.pad(real, [embeddings.shape[1], 0], value=1)
        inputs = torch.cat([embeddings, self.embed_tokens(text).to(embeddings.device)], 1)
        return self.language_model.encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state, mask

    def _decode(self, states: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        """Return the logits at every position of given answers."""
        given = torch.cat([self._start.expand(len(wanted))[:, None], wanted[:, :-1]], 1)
        output = self.language_model(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=given, use_cache=False
        )
        # A model that is spread over devices may end on another device than it began on.
        return output.logits.to(self.device)  # type: ignore[no-any-return]
