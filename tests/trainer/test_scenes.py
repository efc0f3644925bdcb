"""Scenes: what a question answers is what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvp.trainer import scenes, tasks
from tvp.trainer.scenes import Scene, Shape

PLANTED = Scene(
    (
        Shape("circle", "red", 0.125, 0.125, 0.2),
        Shape("star", "red", 0.625, 0.125, 0.2),
        Shape("square", "blue", 0.125, 0.875, 0.2),
    ),
    (0.3, 0.3, 0.3),
)


def many(seed, n):
    """Scenes with four questions each, one a topic."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        scene = scenes.make_scene(rng)
        yield scenes.draw(scene), scene, [scenes.ask(scene, rng, topic) for topic in scenes.TOPICS]


def every_question(scene, topic, n=60):
    rng = np.random.default_rng(0)
    return {scenes.ask(scene, rng, topic) for _ in range(n)}


def test_planted_number_kind_and_colour():
    assert {q.answer for q in every_question(PLANTED, "number")} == {"3"}
    assert {(q.text, q.answer) for q in every_question(PLANTED, "kind")} == {
        ("What shape is the blue object?", "square")  # red is not asked: it would have two answers
    }
    assert {(q.text, q.answer) for q in every_question(PLANTED, "colour")} == {
        ("What color is the circle?", "red"),
        ("What color is the star?", "red"),
        ("What color is the square?", "blue"),
    }


def test_absent_objects_are_made_of_the_pictures_own_colours_and_kinds():
    absent = {q.text for q in every_question(PLANTED, "existence") if q.answer == "no"}
    assert absent == {"Is there a red square?", "Is there a blue circle?", "Is there a blue star?"}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_answers_follow_from_the_shapes(seed):
    rng = np.random.default_rng(seed)
    scene = scenes.make_scene(rng)
    assert 1 <= len(scene.shapes) <= len(scenes.COUNTS)
    for topic in scenes.TOPICS:
        question = scenes.ask(scene, rng, topic)
        assert question.answer in question.labels
        if question.topic == "reasoning":
            assert holds(scene, question.text.split('"')[1]) == (question.answer == "true"), question
        if question.topic == "existence":
            named = question.text.removeprefix("Is there a ").removesuffix("?")
            assert (named in {s.name for s in scene.shapes}) == (question.answer == "yes")


def holds(scene, text):
    """Whether a statement is true, read from its words alone."""
    names, kinds = {s.name for s in scene.shapes}, {s.kind for s in scene.shapes}
    if text.endswith(" objects"):
        than = int(text.split()[2])
        return len(scene.shapes) > than if text.startswith("more") else len(scene.shapes) < than
    if " is " in text:
        kind, colour = text.removeprefix("the ").split(" is ")
        return [s.colour for s in scene.shapes if s.kind == kind] == [colour]
    if " but no " in text:
        some, none = text.removeprefix("a ").split(" but no ")
        return some in kinds and none not in kinds
    return set(text.removeprefix("a ").split(" and a ")) <= names


def test_statements_of_every_form_are_made():
    asked = [scenes.ask(PLANTED, np.random.default_rng(i), "reasoning") for i in range(200)]
    texts = {(q.text.split('"')[1], q.answer) for q in asked}
    assert ("more than 2 objects", "true") in texts
    assert ("fewer than 3 objects", "false") in texts
    assert ("the star is red", "true") in texts
    assert ("the square is red", "false") in texts
    assert ("a blue square and a red star", "true") in texts
    assert any(a == "false" and "red square" in t for t, a in texts)
    assert {("a star but no triangle", "true"), ("a star but no square", "false")} <= texts
    assert all(t.startswith('"') and t.endswith('": true or false?') for t in (q.text for q in asked))


def test_neither_text_nor_picture_alone_decides_a_statement():
    """The best guess from the text alone, learnt on other scenes, stays near one half; so does 'true'."""
    asked = [q for _, _, questions in many(6, 6000) for q in questions if q.topic == "reasoning"]
    assert 0.47 < np.mean([q.answer == "true" for q in asked]) < 0.53
    true_share: dict[str, list[bool]] = {}
    for q in asked[:3000]:
        true_share.setdefault(q.text, []).append(q.answer == "true")
    guess = {text: np.mean(answers) > 0.5 for text, answers in true_share.items()}
    right = np.mean([guess.get(q.text, True) == (q.answer == "true") for q in asked[3000:]])
    assert right < 0.6


def test_shapes_never_overlap_and_show_their_colour():
    for picture, scene, _ in many(3, 200):
        for shape in scene.shapes:
            middle = picture[round(shape.y * 64), round(shape.x * 64)] / 255
            assert np.abs(middle - scenes.COLOURS[shape.colour]).max() < 0.02, shape


def test_a_seed_always_gives_the_same_scenes():
    first, second = (list(many(5, 4)) for _ in range(2))
    assert all((a[0] == b[0]).all() and a[1:] == b[1:] for a, b in zip(first, second, strict=True))


def test_chance_is_what_a_blind_guesser_reaches():
    asked = [q for _, _, questions in many(1, 1500) for q in questions]
    rng = np.random.default_rng(0)
    blind = np.mean([q.labels[rng.integers(len(q.labels))] == q.answer for q in asked])
    assert abs(blind - scenes.CHANCE) < 0.02


def test_yes_and_no_are_balanced():
    asked = [q for _, _, questions in many(2, 1500) for q in questions if q.topic == "existence"]
    assert 0.45 < np.mean([q.answer == "yes" for q in asked]) < 0.55


def test_one_pixel_pictures_can_be_drawn():
    assert scenes.draw(Scene((), (0.2, 0.4, 0.6)), 1).tolist() == [[[51, 102, 153]]]


@pytest.mark.parametrize(
    "name", [name for name, task in tasks.TASKS.items() if task.source == "scenes" and task.labels]
)
def test_a_tasks_labels_are_those_of_its_questions(name):
    task = tasks.get(name)
    data = tasks.open_data("scenes", task, "train", 60, seed=1)
    questions = [question for i in range(len(data)) for question in data[i].questions]
    assert {question.labels for question in questions} == {task.labels}
    assert {question.answer for question in questions} <= set(task.labels)
    assert not task.question or {question.text for question in questions} == {task.question}
