"""Scenes: drawn pictures, with questions whose answers are known.

A scene is one to four coloured shapes on a plain background. Everything about it is known, because it is drawn. So it
needs no download, and it can teach tiny models. All lengths are fractions of the picture's side; a scene can be drawn
at any size.

Four tasks are modelled on the paper's:

- recognition (CIFAR-10): the kind or the colour of a shape; if no shape can be singled out, whether there is one.
- counting (CLEVR): the number of shapes.
- existence (adversarial POPE): yes or no, equally often. The absent shape has colours and kinds of the picture.
- reasoning (Hateful Memes): whether a short text about the picture is true. Neither of them alone decides that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

KINDS = ("circle", "square", "triangle", "star")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.12, 0.75, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.88, 0.12),
    "purple": (0.70, 0.20, 0.85),
    "white": (0.97, 0.97, 0.97),
}
COUNTS = ("1", "2", "3", "4")
YES_NO = ("yes", "no")
TRUE_FALSE = ("true", "false")
GRID = 4  # shapes sit in the cells of a 4 x 4 grid, so they never overlap
TOPICS = ("number", "kind", "colour", "existence", "reasoning")
TASKS = {
    "recognition": ("kind", "colour"),
    "counting": ("number",),
    "existence": ("existence",),
    "reasoning": ("reasoning",),
}
# The accuracy of blind guessing: each topic is asked equally often, and its answers are nearly equally frequent.
CHANCE = sum(1 / len(labels) for labels in (COUNTS, KINDS, COLOURS, YES_NO, TRUE_FALSE)) / len(TOPICS)

_SUPERSAMPLE = 4  # a shape's edge is anti-aliased over 4 x 4 points a pixel

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """One shape: kind, colour, centre (x, y) and side; the last three are fractions of the picture's side."""

    kind: str
    colour: str
    x: float
    y: float
    side: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Shapes on a background, whose RGB values are in [0, 1]."""

    shapes: tuple[Shape, ...]
    background: tuple[float, float, float]

    @property
    def caption(self) -> str:
        """The picture in words: 'a red star and a blue circle'."""
        names = [f"a {shape.name}" for shape in self.shapes]
        return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene, its right answer, and all answers to choose from."""

    text: str
    answer: str
    topic: str
    labels: tuple[str, ...]


def make_scene(rng: np.random.Generator) -> Scene:
    """Make a random scene: 1 to 4 shapes of independent kinds and colours, in different cells of a grid."""
    n_shapes = int(rng.integers(1, len(COUNTS) + 1))
    cells = rng.permutation(GRID * GRID)[:n_shapes]
    colour_names = tuple(COLOURS)
    shapes = []
    for cell in cells:
        row, column = divmod(int(cell), GRID)
        jitter = rng.uniform(-0.01, 0.01, 2)  # of the side; a cell is 0.25 and a shape at most 0.23
        shapes.append(
            Shape(
                kind=KINDS[rng.integers(len(KINDS))],
                colour=colour_names[rng.integers(len(colour_names))],
                x=float((column + 0.5) / GRID + jitter[0]),
                y=float((row + 0.5) / GRID + jitter[1]),
                side=float(rng.uniform(0.19, 0.23)),
            )
        )
    level = rng.uniform(0.2, 0.5)
    tint = rng.uniform(-0.04, 0.04, 3)
    r, g, b = (float(v) for v in np.clip(level + tint, 0, 1))
    return Scene(tuple(shapes), (r, g, b))


def draw(scene: Scene, size: int = 64) -> Picture:
    """Draw a scene as uint8 (size, size, 3)."""
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = np.asarray(scene.background, np.float32) * 255
    for shape in scene.shapes:
        side = max(3, round(shape.side * size))
        mask = _mask(shape.kind, side)
        top = min(max(round(shape.y * size - side / 2), 0), size - side)
        left = min(max(round(shape.x * size - side / 2), 0), size - side)
        window = picture[top : top + side, left : left + side]
        window += mask * (_ink(shape.colour) - window)
    return np.rint(picture).astype(np.uint8)


def ask(scene: Scene, rng: np.random.Generator, topic: str | None = None) -> SceneQuestion:
    """Make a question about a scene.

    The colour (or the kind) of a shape is asked only if its kind (or its colour) singles it out. The absent shape of
    an existence question has a colour and a kind of the picture where possible, so that neither of them alone
    answers it.

    Args:
        scene: what is asked about.
        rng: the source of chance.
        topic: one of TOPICS. If the scene allows no question of it, existence is asked. Default: any that the scene
            allows, with equal chances.
    """
    for name in [topic] if topic else [TOPICS[i] for i in rng.permutation(len(TOPICS))]:
        question = _ASK[name](scene, rng)
        if question is not None:
            return question
    return _ask_existence(scene, rng)


def _ask_number(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    return SceneQuestion("How many objects are there?", str(len(scene.shapes)), "number", COUNTS)


def _ask_kind(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    shape = _singled_out(scene, "colour", rng)
    if shape is None:
        return None
    return SceneQuestion(f"What shape is the {shape.colour} object?", shape.kind, "kind", KINDS)


def _ask_colour(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    shape = _singled_out(scene, "kind", rng)
    if shape is None:
        return None
    return SceneQuestion(f"What color is the {shape.kind}?", shape.colour, "colour", tuple(COLOURS))


def _ask_existence(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    present = {shape.name for shape in scene.shapes}
    if rng.random() < 0.5:
        return SceneQuestion(f"Is there a {_pick(sorted(present), rng)}?", "yes", "existence", YES_NO)
    return SceneQuestion(f"Is there a {_pick(_absent(scene), rng)}?", "no", "existence", YES_NO)


def _absent(scene: Scene) -> list[str]:
    """Return names of absent shapes; where possible, their colours and kinds are the picture's."""
    present = {shape.name for shape in scene.shapes}
    kinds = sorted({shape.kind for shape in scene.shapes})
    colours = sorted({shape.colour for shape in scene.shapes})
    absent = [f"{c} {k}" for c in colours for k in kinds if f"{c} {k}" not in present]
    if not absent:  # all combinations are there: keep one attribute of the picture, change the other
        absent = [f"{c} {k}" for c in colours for k in KINDS if f"{c} {k}" not in present]
        absent += [f"{c} {k}" for c in COLOURS for k in kinds if f"{c} {k}" not in present]
    return absent


def _ask_reasoning(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    """Ask about a statement of one of four forms, which is true half of the time."""
    true = bool(rng.random() < 0.5)
    texts = [_STATE[i](scene, true, rng) for i in rng.permutation(len(_STATE))]
    text = next(text for text in texts if text is not None)
    return SceneQuestion(f'"{text}": true or false?', TRUE_FALSE[not true], "reasoning", TRUE_FALSE)


def _state_number(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    # Only the middle count makes each text true in half of all pictures.
    middle = len(COUNTS) // 2
    many = len(scene.shapes) > middle
    return f"more than {middle} objects" if many == true else f"fewer than {middle + 1} objects"


def _state_colour(scene: Scene, true: bool, rng: np.random.Generator) -> str | None:
    shape = _singled_out(scene, "kind", rng)
    if shape is None:
        return None
    others = sorted({other.colour for other in scene.shapes} - {shape.colour})
    others = others or [colour for colour in COLOURS if colour != shape.colour]
    return f"the {shape.kind} is {shape.colour if true else _pick(others, rng)}"


def _state_both(scene: Scene, true: bool, rng: np.random.Generator) -> str | None:
    present = sorted({shape.name for shape in scene.shapes})
    if len(present) < 2:
        return None
    first = _pick(present, rng)
    second = _pick([name for name in present if name != first], rng) if true else _pick(_absent(scene), rng)
    first, second = (first, second) if rng.random() < 0.5 else (second, first)
    return f"a {first} and a {second}"


def _state_but_no(scene: Scene, true: bool, rng: np.random.Generator) -> str | None:
    """Make a text like 'a star but no circle'. If false, either half is wrong equally often, where possible."""
    present = sorted({shape.kind for shape in scene.shapes})
    absent = [kind for kind in KINDS if kind not in present]
    pairs = [(present, absent)] if true else [(present, present), (absent, absent)]
    pairs = [(some, others) for some, others in pairs if len({*some, *others}) > 1 and some and others]
    if not pairs:
        return None
    some, others = pairs[rng.integers(len(pairs))]
    kind = _pick(some, rng)
    return f"a {kind} but no {_pick([other for other in others if other != kind], rng)}"


_STATE = (_state_number, _state_colour, _state_both, _state_but_no)
_ASK = {
    "number": _ask_number,
    "kind": _ask_kind,
    "colour": _ask_colour,
    "existence": _ask_existence,
    "reasoning": _ask_reasoning,
}


def _singled_out(scene: Scene, attribute: str, rng: np.random.Generator) -> Shape | None:
    values = [getattr(shape, attribute) for shape in scene.shapes]
    alone = [shape for shape, value in zip(scene.shapes, values, strict=True) if values.count(value) == 1]
    return alone[rng.integers(len(alone))] if alone else None


def _pick(names: list[str], rng: np.random.Generator) -> str:
    return names[rng.integers(len(names))]


@lru_cache(maxsize=64)
def _ink(colour: str) -> NDArray[np.float32]:
    return np.asarray(COLOURS[colour], np.float32) * 255


@lru_cache(maxsize=512)
def _mask(kind: str, side: int) -> NDArray[np.float32]:
    """Return the share of each pixel that a shape covers: float32 (side, side, 1) in [0, 1]."""
    n_points = side * _SUPERSAMPLE
    axis = (np.arange(n_points) + 0.5) / n_points * 2 - 1
    x, y = axis[None, :], axis[:, None]
    if kind == "circle":
        inside = x**2 + y**2 <= 1
    elif kind == "square":
        inside = (np.abs(x) <= 0.86) & (np.abs(y) <= 0.86)
    elif kind == "triangle":
        inside = (y <= 0.9) & (np.abs(x) <= (y + 1) / 1.9)
    elif kind == "star":
        inside = _star(x, y)
    else:
        raise KeyError(kind)
    blocks = inside.reshape(side, _SUPERSAMPLE, side, _SUPERSAMPLE)
    cover: NDArray[np.float32] = blocks.mean((1, 3), dtype=np.float32)[:, :, None]
    return cover


def _star(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A four-pointed star: the region under the astroid-like curve |x|^p + |y|^p = 1."""
    power = 0.7
    return np.abs(x) ** power + np.abs(y) ** power <= 1
