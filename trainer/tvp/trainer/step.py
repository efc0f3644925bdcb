"""One step of training: the loss of a batch, and its gradient by the learned values.

The batch may be cut into parts that fit into memory, or shared among processes; the loss is the same. For that, the
mean of each part is weighted by its share of the batch's pictures, questions and answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tvp.sdk.errors import RequestError

from .batches import Batch
from .config import TrainConfig
from .data import Data
from .families import Family
from .frame import Frame
from .losses import Guide, feature_consistency
from .prompt import Geometry, Prompt
from .team import Team

CLEAN_BUDGET = 2 * 2**30  # bytes of clean features kept in memory, all source models together
FIRST_SCALE, LEAST_SCALE = 2.0**14, 2.0**-10  # of a loss in float16, whose gradients would vanish without a scale
RAISE_SCALE_AFTER = 500  # steps without an overflow


class CleanFeatures:
    """A model's features of pictures with a black frame, each computed once.

    These are the image embeddings, or the output of the vision encoder if the embeddings depend on the question.

    They are computed in fixed groups of neighbouring indices. So a picture's features have the same bits whichever
    batch asks for them first, and a resumed run equals one that was not interrupted. If the features of all data do
    not fit into the budget, each batch computes its own and nothing is kept.

    Args:
        family: the model.
        data: all pictures.
        geometry: how they lie on the canvas.
        group: pictures in a group.
        budget: bytes of features to keep; 0 keeps none.
    """

    def __init__(self, family: Family, data: Data, geometry: Geometry, group: int, budget: int) -> None:
        self._family, self._data, self._geometry, self._group = family, data, geometry, group
        self._budget = budget
        self._kept: list[Tensor | None] = [None] * -(-len(data) // group)
        self._keep = None if budget else False  # None: not known before the size of the first features

    @torch.no_grad()
    def __call__(
        self, indices: Sequence[int], canvas: Float[Tensor, "n 3 canvas canvas"], varied: bool = False
    ) -> Tensor:
        """Return the features of some samples.

        Args:
            indices: of the samples.
            canvas: their pictures without a prompt.
            varied: the pictures are augmented, so that their features are not kept.
        """
        if self._keep is None and not varied:
            self._of_group(indices[0] // self._group)  # its size says whether all will fit
        if self._keep and not varied:
            return torch.stack([self._of_group(i // self._group)[i % self._group] for i in indices])
        return self._see(canvas)

    def _see(self, canvas: Tensor) -> Tensor:
        features = self._family.encode(self._family.to_pixels(canvas))
        return (features if self._family.reads_question else self._family.connect(features)).to(canvas.device)

    def _of_group(self, group: int) -> Tensor:
        kept = self._kept[group]
        if kept is None:
            start = group * self._group
            members = range(start, min(start + self._group, len(self._data)))
            kept = self._see(self._geometry.show((self._data[i].picture for i in members), self._family.device))
            self._keep = kept[0].nbytes * len(self._data) <= self._budget
            if self._keep:
                self._kept[group] = kept
        return kept


class Objective:
    """L = L_LM + fca · L_FCA − tse · S_TSE, averaged over the source models (method of arXiv 2404.11207).

    Args:
        config: weights of the losses, and how a batch is cut.
        data: all training data.
        sources: the source models.
        guide: for S_TSE; None leaves it out.
        geometry: how pictures lie on the canvas.
        offload: keep source models on the CPU, except the one whose turn it is. Default False.
        clean_budget: bytes of clean features to remember, of all sources together. Default 2 GiB.

    Attributes:
        scale: the factor of losses in float16. It falls when a gradient overflows, and rises again after some steps.
        n_good: steps since the last overflow.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        sources: Sequence[Family],
        guide: Guide | None,
        geometry: Geometry,
        offload: bool = False,
        clean_budget: int = CLEAN_BUDGET,
    ) -> None:
        self._config, self._sources, self._guide, self._offload = config, sources, guide, offload
        self._geometry = geometry
        self.clean = [CleanFeatures(s, data, geometry, config.batch, clean_budget // len(sources)) for s in sources]
        half = any(source.dtype == torch.float16 for source in sources)
        self.scale, self._fixed_scale, self.n_good = (FIRST_SCALE, False, 0) if half else (1.0, True, 0)

    def __call__(self, batch: Batch, frame: Frame, team: Team) -> tuple[dict[str, float], list[Tensor]]:
        """Return the parts of the loss over the whole batch, and the gradients by `frame.values`.

        Both are the same in every process.

        Raises:
            RequestError: the gradient is not finite.
        """
        while True:
            facts, gradients = self._sum(batch, frame, team)
            if all(bool(torch.isfinite(g).all()) for g in gradients):
                self.n_good += 1
                if not self._fixed_scale and self.n_good % RAISE_SCALE_AFTER == 0:
                    self.scale *= 2
                return facts, gradients
            if self._fixed_scale or self.scale <= LEAST_SCALE:
                raise RequestError(
                    "The gradient is not finite. The model or the data holds NaN or infinite values"
                    + ("." if self._fixed_scale else ", or the model overflows in float16; try --precision bf16.")
                )
            self.scale, self.n_good = self.scale / 2, 0

    def _sum(self, batch: Batch, frame: Frame, team: Team) -> tuple[dict[str, float], list[Tensor]]:
        device, config = frame.mask.device, self._config
        answers = [q.answer for questions in batch.questions for q in questions]
        counted = [len(batch.indices), len(answers), *(s.n_answer_tokens(answers) for s in self._sources)]
        n_pictures, n_rows, *n_tokens = team.sum(torch.tensor(counted, device=device)).tolist()
        others = sorted(set(team.gather(batch.captions))) if config.contrast else None
        gradients = [torch.zeros_like(value) for value in frame.values]
        parts = {"answer": 0.0, **({"fca": 0.0} if config.fca else {}), **({"tse": 0.0} if self._guide else {})}

        def add(loss: Tensor) -> None:
            for total, part in zip(gradients, torch.autograd.grad(loss * self.scale, frame.values), strict=True):
                total += part / self.scale

        for value in frame.values:
            value.requires_grad_(True)
        for part in batch.parts(config.accumulate):
            canvas = self._geometry.place(torch.from_numpy(part.pictures).to(device))
            for source, clean, tokens in zip(self._sources, self.clean, n_tokens, strict=True):
                if self._offload:
                    source.model.to(device)
                answer, consistency, n = self._ask(source, clean, part, canvas, self._show(frame, canvas))
                answer = answer * (n / tokens / len(self._sources))
                parts["answer"] += answer.item()
                if consistency is not None:
                    consistency = consistency * (sum(map(len, part.questions)) / n_rows / len(self._sources))
                    parts["fca"] += consistency.item()
                    answer = answer + config.fca * consistency.to(answer.device)
                add(answer)
                if self._offload:
                    source.model.to("cpu")
            if self._guide is not None:
                semantics = self._guide.task_semantics(self._show(frame, canvas), part.captions, others)
                semantics = semantics * (len(part.captions) / n_pictures)
                parts["tse"] += semantics.item()
                add(-config.tse * semantics)
        for value in frame.values:
            value.requires_grad_(False)
        summed = team.sum(torch.tensor(list(parts.values()), dtype=torch.float64, device=device)).tolist()
        return dict(zip(parts, summed, strict=True)), [team.sum(gradient) for gradient in gradients]

    def _show(self, frame: Frame, canvas: Tensor) -> Tensor:
        return Prompt(frame.pixels(), self._geometry, self._config.pixel_range).on(canvas)

    def _ask(
        self, source: Family, clean: CleanFeatures, part: Batch, canvas: Tensor, prompted: Tensor
    ) -> tuple[Tensor, Tensor | None, int]:
        """Return L_LM and L_FCA of one source, and the number of answer tokens.

        The prompted pictures are encoded once, for both losses.
        """
        picked = [(i, q) for i, questions in enumerate(part.questions) for q in questions]
        rows = torch.tensor([i for i, _ in picked], device=canvas.device)
        asked, answers = [q.text for _, q in picked], [q.answer for _, q in picked]
        embeddings = source.connect_rows(source.encode(source.to_pixels(prompted)), rows, asked)
        answer = source.answer_loss(embeddings, asked, answers, [q.labels for _, q in picked])
        consistency = None
        if self._config.fca:
            with torch.no_grad():
                target = clean(part.indices, canvas, part.varied).index_select(0, rows)
                if source.reads_question:
                    target = source.connect(target, asked)
            consistency = feature_consistency(embeddings.float(), target.to(embeddings.device).float())
        return answer, consistency, source.n_answer_tokens(answers)
