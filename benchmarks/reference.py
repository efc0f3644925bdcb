"""The released training step and scorer, re-stated in our own words with all their waste, for reference_step.py.

The step encodes the prompted picture twice and the clean one again, runs the language-model head over every position,
and leaves the guide's weights trainable and its text tower running at every step. The scorer makes one language-model
call for each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tvp.trainer import tasks
from tvp.trainer.data import Question, Sample
from tvp.trainer.families.blip2 import Blip2
from tvp.trainer.losses import Guide
from tvp.trainer.prompt import Prompt

TASK = tasks.get("cifar10")


class Photos:
    """Noise as small as CIFAR-10's photos, with its classes in turn; no step depends on what is in a picture."""

    def __init__(self, n: int) -> None:
        self._pictures = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        name = TASK.labels[index % len(TASK.labels)]
        question = Question(TASK.question, name, TASK.labels)
        return Sample(self._pictures[index], (question,), f"a {name}")


class Reference:
    """The released step and scorer. The guide becomes this object's own: its weights are made trainable."""

    def __init__(self, family: Blip2, guide: Guide, read: Callable[[list[str]], Tensor], data: Photos) -> None:
        self._family, self._guide, self._read, self._data = family, guide, read, data
        guide.model.requires_grad_(True)

    def gradient(self, prompt: Prompt, indices: Sequence[int], fca: float = 0.005, tse: float = 0.001) -> Tensor:
        """The loss's gradient by the frame."""
        guide = self._guide
        samples = [self._data[i] for i in indices]
        canvas = prompt.geometry.show([sample.picture for sample in samples])
        frame = prompt.frame.clone().requires_grad_(True)
        prompted = canvas + prompt.geometry.mask() * frame

        answer = self._answer_loss(self._see(prompted), [sample.questions[0] for sample in samples])
        with torch.no_grad():
            clean = self._see(canvas)
        consistency = (self._see(prompted) - clean).norm(dim=-1).mean()
        texts = guide.model.encode_text(self._read([f"this is a photo of {sample.caption}" for sample in samples]))
        cosine = (guide.image_features(prompted) * F.normalize(texts, dim=-1)).sum(-1)
        semantics = (guide.model.logit_scale.exp() * cosine).mean()

        (answer + fca * consistency - tse * semantics).backward()
        guide.model.zero_grad(set_to_none=True)  # computed, and thrown away
        assert frame.grad is not None
        return frame.grad

    @torch.no_grad()
    def scores(self, embeddings: Tensor) -> Tensor:
        """Mean log-probabilities of the classes' tokens."""
        columns = []
        for label in TASK.labels:
            question = Question(TASK.question, label)
            inputs, ids, n_answer = self._inputs(embeddings, [question] * len(embeddings))
            logits = self._family.model.language_model(inputs_embeds=inputs).logits
            likely = logits.log_softmax(-1)[:, -ids.shape[1] - 1 : -1].gather(-1, ids[:, :, None])[:, :, 0]
            columns.append(likely[:, -n_answer[0] :].mean(-1))
        return torch.stack(columns, -1)

    def _see(self, canvas: Tensor) -> Tensor:
        model = self._family.model
        hidden = model.vision_model(self._family.to_pixels(canvas)).last_hidden_state
        queries = model.query_tokens.expand(len(canvas), -1, -1)
        seen = model.qformer(query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state
        embeddings: Tensor = model.language_projection(seen)
        return embeddings

    def _inputs(self, embeddings: Tensor, asked: Sequence[Question]) -> tuple[Tensor, Tensor, list[int]]:
        """Pictures, questions and answers as the language model reads them, padded on the right; the texts' ids;
        and how many of them are each answer's."""
        layout, tokenizer = self._family.layout, self._family.tokenizer
        questions = [layout.prompt.replace("{question}", q.text) for q in asked]
        texts = [q + layout.answer.replace("{answer}", a.answer) for q, a in zip(questions, asked, strict=True)]
        rows = [[*row, layout.end[0]] for row in tokenizer(texts).input_ids]
        n_answer = [
            len(row) - len(question) for row, question in zip(rows, tokenizer(questions).input_ids, strict=True)
        ]
        length = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
        inputs = torch.cat([embeddings, self._family.embed_tokens(ids)], 1)
        return inputs, ids, n_answer

    def _answer_loss(self, embeddings: Tensor, asked: Sequence[Question]) -> Tensor:
        inputs, ids, n_answer = self._inputs(embeddings, asked)
        real = ids != self._family.tokenizer.pad_token_id
        ends = real.sum(1)
        column = torch.arange(ids.shape[1])
        starts = ends - torch.tensor(n_answer)
        counted = (column >= starts[:, None]) & (column < ends[:, None])
        n_image = embeddings.shape[1]
        labels = F.pad(ids.masked_fill(~counted, -100), [n_image, 0], value=-100)
        mask = F.pad(real.long(), [n_image, 0], value=1)
        loss: Tensor = self._family.model.language_model(inputs_embeds=inputs, attention_mask=mask, labels=labels).loss
        return loss
