"""One step of training: the loss of a batch, and its gradient by the learned values.

The batch may be cut into parts that fit into memory, or shared among processes; the loss is the same. For that, the
mean of each part is weighted by its share of the batch's pictures, questions and answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tvp.sdk.errors import RequestError

from .batches import Batch
from .config import TrainConfig
from .data import Data, Question
from .families import Family
from .features import features
from .learned import Learned
from .losses import Guide, Moments, choice_loss, distance, length
from .preparation import Prepared
from .prompt import Geometry
from .references import References
from .team import Team

CLEAN_BUDGET = 2 * 2**30  # bytes of reference features kept in memory, all source models together
FIRST_SCALE, LEAST_SCALE = 2.0**14, 2.0**-10  # of a loss in float16, whose gradients would vanish without a scale
RAISE_SCALE_AFTER = 500  # steps without an overflow


class Objective:
    """The loss, averaged over the source models. What it is depends on what the prompt is learned from.

    - answers: L_LM + fca · L_FCA − tse · S_TSE (method of arXiv 2404.11207);
    - pairs: L_FCA with the clean picture as its reference, relative to its length;
    - unpaired: the distance of the features' moments from those of other good pictures;
    - pixels: the mean absolute difference from the clean picture, without a model.

    Args:
        config: weights of the losses, and how a batch is cut.
        data: all training data.
        sources: the source models.
        guide: for S_TSE; None leaves it out.
        geometry: how pictures lie on the canvas.
        offload: keep source models on the CPU, except the one whose turn it is. Default False.
        clean_budget: bytes of reference features to remember, of all sources together. Default 2 GiB.
        learn_from: `answers` (default), `pairs`, `unpaired` or `pixels`.

    Attributes:
        references: of each source, the features that the loss compares with.
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
        learn_from: str = "answers",
    ) -> None:
        self._config, self._sources, self._guide, self._offload = config, sources, guide, offload
        self._learn_from, self._geometry = learn_from, geometry
        reference = "clean" if learn_from == "pairs" else config.reference
        self._relative = learn_from == "pairs" or config.relative
        budget = clean_budget // len(sources)
        self.references = [
            References(source, data, geometry, reference, config.depths, config.batch, budget) for source in sources
        ]
        half = any(source.dtype == torch.float16 for source in sources)
        self._fixed_scale = not half
        self.restart()

    def restart(self) -> None:
        """Forget how losses were scaled, as before the first step. Reference features are kept."""
        self.scale, self.n_good = 1.0 if self._fixed_scale else FIRST_SCALE, 0

    @staticmethod
    def of(prepared: Prepared) -> Objective:
        """Return the objective of a run."""
        # Reference features are worth remembering only where pictures come round again.
        budget = CLEAN_BUDGET if prepared.n_steps > prepared.n_batches else 0
        p = prepared
        return Objective(p.config, p.train, p.sources, p.guide, p.geometry, p.offload, budget, p.learn_from)

    def loss_of(self, facts: dict[str, float]) -> float:
        """Return what the parts of the loss add up to, without TSE, whose scale is the guide's own."""
        weights = {"fca": self._config.fca if self._learn_from == "answers" else 1.0, "tse": 0.0}
        return sum(weights.get(name, 1.0) * value for name, value in facts.items())

    def __call__(self, batch: Batch, learned: Learned, team: Team) -> tuple[dict[str, float], list[Tensor]]:
        """Return the parts of the loss over the whole batch, and the gradients by `learned.values`.

        Both are the same in every process.

        Raises:
            RequestError: the gradient is not finite.
        """
        while True:
            facts, gradients = _Step(self, batch, learned, team).sum()
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


class _Step:
    """The loss of one batch; its parts are added up in `_facts`."""

    def __init__(self, objective: Objective, batch: Batch, learned: Learned, team: Team) -> None:
        self._o, self._config, self._learned, self._team = objective, objective._config, learned, team
        self._device = learned.device
        self._pieces = batch.parts(self._config.accumulate)
        answers = [q.answer for questions in batch.questions for q in questions]
        counted = [len(batch.indices), len(answers), *(s.n_answer_tokens(answers) for s in objective._sources)]
        counts = team.sum(torch.tensor(counted, device=self._device)).tolist()
        self._n_pictures, self._n_rows, self._n_tokens = counts[0], counts[1], counts[2:]
        self._others = sorted(set(team.gather(batch.captions))) if self._config.contrast else None
        self._facts: dict[str, float] = {}

    def sum(self) -> tuple[dict[str, float], list[Tensor]]:
        """Return the parts of the loss, and the gradients, summed over all processes."""
        values = self._learned.values
        for value in values:
            value.requires_grad_(True)
        alone = [torch.zeros_like(value) for value in values]  # the gradient of what no source model decides
        of_sources = []
        if self._o._learn_from == "pixels":
            self._add_pixels(alone)
        else:
            for number in range(len(self._o._sources)):
                of_sources.append([torch.zeros_like(value) for value in values])
                self._add_source(number, of_sources[-1])
        if self._o._guide is not None:
            self._add_semantics(self._o._guide, alone)
        for value in values:
            value.requires_grad_(False)
        summed = self._team.sum(torch.tensor(list(self._facts.values()), dtype=torch.float64, device=self._device))
        gradients = [[self._team.sum(g) for g in one] for one in [alone, *of_sources]]
        if self._config.balance and len(of_sources) > 1:
            gradients[1:] = self._balanced(gradients[1:])
        total = [torch.stack(parts).sum(0) for parts in zip(*gradients, strict=True)]
        return dict(zip(self._facts, summed.tolist(), strict=True)), total

    def _balanced(self, gradients: list[list[Tensor]]) -> list[list[Tensor]]:
        """Scale the gradients of the sources to their mean length, in each group of values."""
        balanced = [list(one) for one in gradients]
        for group in self._learned.groups:
            lengths = [torch.stack([g.norm() for g in one[group]]).norm() for one in gradients]
            mean = torch.stack(lengths).mean()
            for one, mine in zip(balanced, lengths, strict=True):
                one[group] = [g * (mean / mine) if mine > 0 else g for g in one[group]]
        return balanced

    def _add(self, loss: Tensor, gradients: list[Tensor]) -> None:
        for total, part in zip(gradients, torch.autograd.grad(loss * self._o.scale, self._learned.values), strict=True):
            total += part / self._o.scale

    def _count(self, name: str, value: Tensor) -> None:
        self._facts[name] = self._facts.get(name, 0.0) + value.item()

    def _canvas(self, pictures: Any) -> Tensor:
        return self._o._geometry.place(torch.from_numpy(pictures).to(self._device))

    def _shown(self, canvas: Tensor) -> Tensor:
        return self._learned.shown().on(canvas)

    # What each kind of loss adds.

    def _add_pixels(self, gradients: list[Tensor]) -> None:
        for piece in self._pieces:
            difference = (self._shown(self._canvas(piece.pictures)) - self._canvas(piece.clean)).abs().mean()
            loss = difference * (len(piece.indices) / self._n_pictures)
            self._count("pixels", loss)
            self._add(loss, gradients)

    def _add_semantics(self, guide: Guide, gradients: list[Tensor]) -> None:
        for piece in self._pieces:
            semantics = guide.task_semantics(self._shown(self._canvas(piece.pictures)), piece.captions, self._others)
            semantics = semantics * (len(piece.captions) / self._n_pictures)
            self._count("tse", semantics)
            self._add(-self._config.tse * semantics, gradients)

    def _add_source(self, number: int, gradients: list[Tensor]) -> None:
        source = self._o._sources[number]
        if self._o._offload:
            source.model.to(self._device)
        if self._o._learn_from == "unpaired":
            self._add_moments(source, gradients)
        else:
            self._add_consistency(number, source, gradients)
        if self._o._offload:
            source.model.to("cpu")

    def _add_consistency(self, number: int, source: Family, gradients: list[Tensor]) -> None:
        """Add L_LM and L_FCA of one source. The prompted pictures are encoded once, for both."""
        o, n_sources = self._o, len(self._o._sources)
        asks = o._learn_from == "answers"
        compares = not asks or self._config.fca > 0
        weight = self._config.fca if asks else 1.0
        references = [o.references[number](piece) for piece in self._pieces] if compares else []
        lengths = self._lengths(source, references) if compares and o._relative else None
        for i, piece in enumerate(self._pieces):
            pixels = source.to_pixels(self._shown_of(i))
            encoded, seen = features(source, pixels, self._config.depths if compares else 1, connected=not asks)
            loss = torch.zeros((), device=self._device)
            if asks:
                rows, asked = _asked(piece, self._device)
                answers = [q.answer for q in asked]
                texts = [q.text for q in asked]
                embeddings = source.connect_rows(encoded, rows, texts)
                labels = [q.labels for q in asked]
                if self._config.answer_loss == "labels":
                    answer, share = choice_loss(source, embeddings, texts, answers, labels), len(asked) / self._n_rows
                else:
                    answer = source.answer_loss(embeddings, texts, answers, labels)
                    share = source.n_answer_tokens(answers) / self._n_tokens[number]
                loss = answer * (share / n_sources)
                self._count("answer", loss)
                seen = [depth.index_select(0, rows.to(depth.device)) for depth in seen] + [embeddings]
            if compares:
                pairs = zip(seen, self._targets(source, piece, references[i]), strict=True)
                away = torch.stack(
                    [distance(mine, theirs.to(mine.device)).sum().to(self._device) for mine, theirs in pairs]
                )
                n = self._n_rows if asks else self._n_pictures
                consistency = (away / (n if lengths is None else lengths)).mean() / n_sources
                self._count("fca", consistency)
                loss = loss.to(self._device) + weight * consistency
            self._add(loss, gradients)

    def _targets(self, source: Family, piece: Batch, reference: list[Tensor]) -> list[Tensor]:
        """Return the reference features of each row of `seen`: of questions if there are any, else of pictures."""
        if self._o._learn_from != "answers":
            return reference
        rows, asked = _asked(piece, reference[-1].device)
        found = [depth.index_select(0, rows) for depth in reference]
        if source.reads_question:
            found[-1] = source.connect(found[-1], [q.text for q in asked])
        return found

    @torch.no_grad()
    def _lengths(self, source: Family, references: list[list[Tensor]]) -> Tensor:
        """Return for each depth the length of the reference features, added up over the whole batch."""
        totals = [
            torch.stack([length(t).sum().to(self._device) for t in targets])
            for piece, reference in zip(self._pieces, references, strict=True)
            for targets in [self._targets(source, piece, reference)]
        ]
        return self._team.sum(torch.stack(totals).sum(0))

    def _add_moments(self, source: Family, gradients: list[Tensor]) -> None:
        """Add the distance of moments from those of the batch's good pictures, over all depths.

        Moments are of the whole batch. If this process has a part of it at a time, it adds up the sums of all parts
        first, without a gradient; each part's gradient then follows from that of the distance by the sums.
        """
        n_sources = len(self._o._sources)

        def see(canvas: Tensor) -> list[Tensor]:
            return features(source, source.to_pixels(canvas), self._config.depths)[1]

        with torch.no_grad():
            good = [see(self._canvas(piece.clean)) for piece in self._pieces]
            centres = [self._mean([part[depth] for part in good]) for depth in range(len(good[0]))]
            reference = self._moments(good, centres)
        if len(self._pieces) == 1 and self._team.size == 1:
            mine = [Moments.of(seen, at) for seen, at in zip(see(self._shown_of(0)), centres, strict=True)]
            loss = _apart(mine, reference) / n_sources
            self._count("moments", loss)
            self._add(loss.to(self._device), gradients)
            return
        with torch.no_grad():
            mine = self._moments([see(self._shown_of(i)) for i in range(len(self._pieces))], centres)
        sums = [moments.sums.requires_grad_(True) for moments in mine]
        loss = _apart(mine, reference) / n_sources
        self._count("moments", loss / self._team.size)  # every process knows the whole
        slopes = torch.autograd.grad(loss, sums)
        for i in range(len(self._pieces)):
            parts = [Moments.of(seen, at).sums for seen, at in zip(see(self._shown_of(i)), centres, strict=True)]
            along = [(part * slope).sum().to(self._device) for part, slope in zip(parts, slopes, strict=True)]
            self._add(torch.stack(along).sum(), gradients)

    def _shown_of(self, piece: int) -> Tensor:
        return self._shown(self._canvas(self._pieces[piece].pictures))

    def _mean(self, parts: list[Tensor]) -> Tensor:
        """Return the mean token over all parts and processes, (width)."""
        total = torch.stack([part.float().sum((0, 1)) for part in parts]).sum(0)
        n_tokens = sum(part.shape[0] * part.shape[1] for part in parts)
        # The count goes with the sums: it is on their device, where processes can add up.
        total = self._team.sum(torch.cat([total.double(), total.new_tensor([n_tokens]).double()]))
        return (total[:-1] / total[-1]).float()

    def _moments(self, parts: list[list[Tensor]], centres: list[Tensor]) -> list[Moments]:
        """Return the moments at each depth, over all parts and processes."""
        found = []
        for depth, centre in enumerate(centres):
            local = [Moments.of(part[depth], centre) for part in parts]
            counts = torch.tensor([[m.n_pictures, m.n_tokens] for m in local]).sum(0).to(centre.device)
            n_pictures, n_tokens = self._team.sum(counts).tolist()
            sums = self._team.sum(torch.stack([m.sums for m in local]).sum(0))
            found.append(Moments(n_pictures, n_tokens, sums, centre))
        return found


def _apart(mine: Sequence[Moments], reference: Sequence[Moments]) -> Tensor:
    """Return the distance of moments, added up over depths."""
    away = [m.distance(theirs) for m, theirs in zip(mine, reference, strict=True)]
    return torch.stack([one.to(away[0].device) for one in away]).sum()


def _asked(piece: Batch, device: torch.device) -> tuple[Tensor, list[Question]]:
    """Return for each question of a batch the row of its picture, and the question."""
    picked = [(row, q) for row, questions in enumerate(piece.questions) for q in questions]
    return torch.tensor([row for row, _ in picked], device=device), [q for _, q in picked]
