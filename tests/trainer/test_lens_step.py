"""The loss that a lens follows is that of its formula, however it is computed: in parts, in processes, in half."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from tests.tiny import CANVAS, random_lens, save_tiny
from tvp.trainer import families, tasks
from tvp.trainer.batches import load_batch
from tvp.trainer.config import TrainConfig
from tvp.trainer.prompt import Geometry
from tvp.trainer.step import Objective
from tvp.trainer.team import Team

FULL = Geometry(CANVAS, CANVAS)
SIGNALS = ["pairs", "unpaired", "pixels", "answers", "labels"]  # labels: of the answers, the choice alone


@pytest.fixture(scope="module")
def data():
    return tasks.open_data("scenes", tasks.get("bad-camera"), "train", 12, 0)


@pytest.fixture
def config(zoo):
    return TrainConfig(
        (str(zoo[0]),),
        method="lens",
        lens="conv",
        frame=False,
        canvas=CANVAS,
        batch=5,
        questions=2,
        tse=0.0,
        fca=0.3,
        reference="clean",
        relative=True,
        n_validation=4,
    )


def chosen(config, signal):
    """Return the configuration and what it learns from."""
    return (replace(config, answer_loss="labels"), "answers") if signal == "labels" else (config, signal)


def batch_of(data, signal, indices=range(5)):
    """Pictures with different numbers of questions; without pairs, other good pictures stand for the clean ones."""
    indices = list(indices)
    batch = load_batch(data, indices, FULL, 2 if signal == "answers" else 0)
    batch = replace(batch, questions=[q[: 1 + i % 2] for i, q in zip(indices, batch.questions, strict=True)])
    if signal == "unpaired":
        others = load_batch(data, [11 - i for i in indices], FULL, 0)
        batch = replace(batch, clean=others.clean)
    return batch


def step(config, data, signal, sources, learned=None, batch=None, team=None, **more):
    objective = Objective(config, data, sources, None, FULL, learn_from=signal, **more)
    return objective(batch or batch_of(data, signal), learned or random_lens(), team or Team())


def depths_of(family, canvas, n):
    """The outputs of the first layers of a tiny LLaVA and its image embeddings, taken without `features`."""
    pixels = family.to_pixels(canvas)
    hidden = family.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[1:]
    places = {1: [], 3: [0, 1], 0: range(len(hidden))}[n]
    return [*(hidden[i] for i in places), family.see(pixels)]


def moments(features):
    mean_token = features.mean(1)
    return [features.mean((0, 1)), features.flatten(0, 1).std(0, correction=0), mean_token.std(0, correction=0)]


def long_way(config, data, signal, family, learned):
    """The loss of one batch, by the formula of the method, all at once."""
    batch = batch_of(data, signal)
    shown = learned.shown().on(FULL.place(torch.from_numpy(batch.pictures)))
    clean = FULL.place(torch.from_numpy(batch.clean))
    if signal == "pixels":
        return (shown - clean).abs().mean()
    mine, theirs = depths_of(family, shown, config.depths), depths_of(family, clean, config.depths)
    if signal == "unpaired":
        apart = [
            (m - t).norm() / t.norm()
            for a, b in zip(mine, theirs, strict=True)
            for m, t in zip(moments(a), moments(b), strict=True)
        ]
        return torch.stack(apart).sum()
    if signal == "pairs":
        apart = [(a - b).norm(dim=-1).mean() / b.norm(dim=-1).mean() for a, b in zip(mine, theirs, strict=True)]
        return torch.stack(apart).mean()
    rows = torch.tensor([i for i, asked in enumerate(batch.questions) for _ in asked])
    asked = [q for questions in batch.questions for q in questions]
    texts, right = [q.text for q in asked], [q.answer for q in asked]
    if config.answer_loss == "labels":
        scores = [
            family.answer_scores(mine[-1][row][None], [q.text], q.labels)[0] for row, q in zip(rows, asked, strict=True)
        ]
        chosen = [-s.log_softmax(-1)[q.labels.index(q.answer)] for s, q in zip(scores, asked, strict=True)]
        answers = torch.stack(chosen).mean()
    else:
        answers = family.answer_loss(mine[-1][rows], texts, right)
    apart = [
        (a[rows] - b[rows]).norm(dim=-1).mean() / b[rows].norm(dim=-1).mean() for a, b in zip(mine, theirs, strict=True)
    ]
    return answers + config.fca * torch.stack(apart).mean()


@pytest.mark.parametrize("depths", [1, 3, 0])
@pytest.mark.parametrize("signal", SIGNALS)
def test_the_gradient_is_that_of_the_formula(config, data, zoo, signal, depths):
    config, signal = chosen(config, signal)
    config, family, learned = replace(config, depths=depths), families.load(zoo[0]), random_lens()
    facts, gradients = step(config, data, signal, [family], learned)
    for value in learned.values:
        value.requires_grad_(True)
    loss = long_way(config, data, signal, family, learned)
    expected = torch.autograd.grad(loss, learned.values)
    said = facts["answer"] + config.fca * facts["fca"] if signal == "answers" else sum(facts.values())
    assert said == pytest.approx(loss.item(), rel=1e-4)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert (mine - theirs).norm() <= 2e-3 * theirs.norm() + 1e-7
    assert all(theirs.norm() > 0 for theirs in expected)


def test_where_the_connector_reads_the_question_the_encoders_output_is_compared(config, data, tmp_path):
    family, learned = families.load(save_tiny("instructblip", tmp_path / "tiny")), random_lens("colour")
    facts, gradients = step(config, data, "pairs", [family], learned)
    batch = batch_of(data, "pairs")
    for value in learned.values:
        value.requires_grad_(True)
    mine, theirs = (
        family.encode(family.to_pixels(canvas))
        for canvas in (
            learned.shown().on(FULL.place(torch.from_numpy(batch.pictures))),
            FULL.place(torch.from_numpy(batch.clean)),
        )
    )
    loss = (mine - theirs).norm(dim=-1).mean() / theirs.norm(dim=-1).mean()
    assert facts["fca"] == pytest.approx(loss.item(), rel=1e-5)
    for value, expected in zip(gradients, torch.autograd.grad(loss, learned.values), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("signal", SIGNALS)
def test_parts_of_a_batch_add_up_to_the_whole(config, data, zoo, signal, parts):
    config, signal = chosen(config, signal)
    config, family = replace(config, depths=3), families.load(zoo[0])
    facts, whole = step(config, data, signal, [family])
    same, cut = step(replace(config, accumulate=parts), data, signal, [family])
    assert facts == pytest.approx(same, rel=1e-4)
    for mine, theirs in zip(cut, whole, strict=True):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-7


class Half:
    """One of two threads that act as the processes of a team."""

    size, device = 2, None

    def __init__(self, rank, shared):
        self.rank, self._shared = rank, shared

    @property
    def leads(self):
        return self.rank == 0

    def gather(self, items):
        slots, barrier = self._shared
        slots[self.rank] = items
        barrier.wait()
        both = [*slots[0], *slots[1]]
        barrier.wait()
        return both

    def sum(self, tensor):
        first, second = self.gather([tensor.clone()])
        return tensor.copy_(first + second)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("signal", SIGNALS)
def test_two_processes_find_the_gradient_that_one_does(config, data, zoo, signal, accumulate):
    config, signal = chosen(replace(config, depths=3), signal)
    families_of = [families.load(zoo[0]) for _ in range(2)]  # transformers loads one at a time
    facts, whole = step(config, data, signal, families_of[:1])
    shared, found = ([None, None], threading.Barrier(2, timeout=60)), {}

    def work(rank):
        mine = batch_of(data, signal, range(rank, 5, 2))  # three pictures and two
        part = replace(config, accumulate=accumulate)
        found[rank] = step(part, data, signal, [families_of[rank]], None, mine, Half(rank, shared))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in (0, 1):
        said, gradients = found[rank]
        assert said == pytest.approx(facts, rel=1e-4)
        for mine, theirs in zip(gradients, whole, strict=True):
            assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-7


@pytest.mark.parametrize("signal", ["pairs", "unpaired", "answers"])
def test_an_offloaded_source_gives_the_same(config, data, zoo, signal):
    _, here = step(config, data, signal, [families.load(zoo[0])])
    _, there = step(config, data, signal, [families.load(zoo[0])], offload=True)
    assert all(map(torch.equal, here, there))


@pytest.mark.parametrize("signal", ["pairs", "unpaired"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_points_the_same_way(config, data, zoo, signal, dtype):
    flat = [
        torch.cat([g.flatten() for g in step(config, data, signal, [families.load(zoo[0], dtype=kind)])[1]])
        for kind in (torch.float32, dtype)
    ]
    assert flat[1].dtype == torch.float32
    assert torch.cosine_similarity(*flat, dim=0) > 0.97


def test_a_half_that_overflows_is_scaled_down(config, data, zoo):
    objective = Objective(config, data, [families.load(zoo[0], dtype=torch.float16)], None, FULL, learn_from="pairs")
    objective.scale = 2.0**40
    _, gradients = objective(batch_of(data, "pairs"), random_lens(), Team())
    assert objective.scale < 2.0**40
    assert all(g.isfinite().all() for g in gradients)
    objective.restart()
    assert objective.scale == 2.0**14


def test_gradients_of_several_sources_are_averaged_or_brought_to_one_length(config, data, zoo, tmp_path):
    sources = [families.load(zoo[0]), families.load(save_tiny("blip2", tmp_path / "blip2"))]
    learned = random_lens("colour", frame=True)
    alone = [step(config, data, "pairs", [source], learned)[1] for source in sources]
    _, averaged = step(config, data, "pairs", sources, learned)
    _, balanced = step(replace(config, balance=True), data, "pairs", sources, learned)
    for value, first, second in zip(averaged, *alone, strict=True):
        torch.testing.assert_close(value, (first + second) / 2, rtol=1e-4, atol=1e-7)
    assert [group.start for group in learned.groups] == [0, 3]
    for group in learned.groups:  # the lens's values, and the frame's
        one, other = (torch.cat([g.flatten() for g in gradients[group]]) / 2 for gradients in alone)
        mean = (one.norm() + other.norm()) / 2
        expected = one * mean / one.norm() + other * mean / other.norm()
        found = torch.cat([g.flatten() for g in balanced[group]])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(torch.cat([g.flatten() for g in balanced]), torch.cat([g.flatten() for g in averaged]))


def test_clean_features_are_computed_once_and_have_the_same_bits(config, data, zoo):
    family = families.load(zoo[0])
    objective = Objective(config, data, [family], None, FULL, learn_from="pairs")
    first = objective.references[0](batch_of(data, "pairs", [1, 3]))
    seen = []
    family.encode = lambda pixels: seen.append(pixels)
    again = objective.references[0](batch_of(data, "pairs", [3, 1]))
    assert not seen
    assert torch.equal(first[0], again[0].flip(0))
