"""Procedural pictures with questions and answers, seeded; also the source of demo and evaluation examples.

Two streams never meet: a picture's generator is seeded by its split's name as well as by its number, so no held-out
picture was ever seen in training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from random import Random
from typing import NamedTuple

from PIL import Image

from training import drawing
from training.canvas import COUNT_MOST, Box, Canvas, Cells, Thing

WORDS = ["OPEN", "STOP", "PASS", "FAIL", "PUSH", "EXIT", "HOT", "COLD", "LEFT", "TEST", "SAFE"]
LARGE_PRINT, SMALL_PRINT = 56, 30

PHRASES: dict[str, list[str]] = {
    "background": ["What color is the background?", "Which background color is it?"],
    "pattern": ["What pattern is the background?", "Which background pattern is it?"],
    "shape_color": ["What color is the {0}?", "Which color is the {0}?"],
    "color_shape": ["What shape is {0}?", "Which shape is {0}?"],
    "count": ["How many shapes are there?", "Count the shapes."],
    "where": ["Where is the {0}?", "In which corner is the {0}?"],
    "read_large": ["What number is printed?", "Read the number."],
    "read_medium": ["What number is printed?", "Read the number."],
    "read_small": ["What number is printed?", "Read the number."],
    "word": ["What word is printed?", "Read the word."],
    "gauge": ["What does the gauge show?", "Read the gauge."],
    "gauge_fine": ["What does the gauge show exactly?", "Read the gauge exactly."],
    "defect": ["Is there a defect?", "Is the surface damaged?"],
    "defect_tiny": ["Is there a defect?", "Is the surface damaged?"],
    "defect_kind": ["What kind of defect is it?", "Which defect is there?"],
    "two_which": ["Which picture shows a {0}?", "In which picture is a {0}?"],
    "two_more": ["Which picture has more shapes?", "In which picture are more shapes?"],
    "two_read": ["What number is printed in the {0} picture?", "Read the number in the {0} picture."],
}
KINDS = list(PHRASES)
DETAIL_KINDS = ["read_small", "gauge_fine", "defect_tiny"]
"""Kinds whose evidence is only a few pixels wide."""


class Question(NamedTuple):
    """A question about one or two pictures, and its only right answer."""

    kind: str
    text: str
    answer: str


class Scene(NamedTuple):
    """A picture, its labels per cell (name to int8 (24, 24)), what it shows and what may be asked."""

    picture: Image.Image
    labels: dict[str, Cells]
    things: list[Thing]
    questions: list[Question]


class Example(NamedTuple):
    """One question with its picture or pictures."""

    pictures: list[Image.Image]
    question: str
    answer: str
    kind: str


def _ask(rng: Random, kind: str, answer: str, *parts: str) -> Question:
    return Question(kind, rng.choice(PHRASES[kind]).format(*parts), answer)


def _number(rng: Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(rng.choice([1, 2, 2, 3, 3, 4])))


def _print_size(rng: Random, length: int) -> int:
    band = rng.choice([(18, SMALL_PRINT), (SMALL_PRINT, LARGE_PRINT), (LARGE_PRINT, 120)])
    return min(rng.randrange(*band), round(300 / (0.62 * length)))


def _gauge_value(rng: Random) -> int:
    return rng.randrange(0, 101, 10) if rng.random() < 0.6 else rng.randrange(0, 101, 5)


def _base(rng: Random, quiet: float) -> Canvas:
    """A canvas whose background is plain or a gradient with probability ``quiet``."""
    pattern = rng.choice(["plain", "gradient"]) if rng.random() < quiet else rng.choice(drawing.PATTERNS)
    color = "white" if rng.random() < 0.25 else rng.choice(list(drawing.COLORS))
    return Canvas(rng, color, pattern)


def _add_shapes(canvas: Canvas, count: int, smallest: int, largest: int) -> None:
    rng = canvas.rng
    distinct = rng.random() < 0.5
    shapes = rng.sample(drawing.SHAPES, min(count, len(drawing.SHAPES)))
    used: set[str] = set()
    for index in range(count):
        color = drawing.contrasting(rng, canvas.background)
        for _ in range(8 if distinct else 0):
            if color not in used:
                break
            color = drawing.contrasting(rng, canvas.background)
        used.add(color)
        shape = shapes[index] if distinct else rng.choice(drawing.SHAPES)
        canvas.add_shape(shape, color, rng.randint(smallest, largest))


def _add_number(canvas: Canvas) -> None:
    text = _number(canvas.rng)
    canvas.add_text(text, drawing.print_ink(canvas.rng, canvas.background), _print_size(canvas.rng, len(text)))


def _add_word(canvas: Canvas) -> None:
    size = canvas.rng.randrange(26, 80)
    canvas.add_text(canvas.rng.choice(WORDS), drawing.print_ink(canvas.rng, canvas.background), size)


def shapes_canvas(rng: Random) -> Canvas:
    """One to five shapes on any background."""
    canvas = _base(rng, 0.3)
    count = rng.randint(1, COUNT_MOST)
    smallest = rng.randint(36, 64)
    _add_shapes(canvas, count, smallest, smallest + (60 if count <= 2 else 30))
    return canvas


def print_canvas(rng: Random) -> Canvas:
    """A printed number, at times with a word, on any background."""
    canvas = _base(rng, 0.7)
    _add_number(canvas)
    if rng.random() < 0.5:
        _add_word(canvas)
    return canvas


def gauge_canvas(rng: Random) -> Canvas:
    """A gauge, at times with a number or a word beside it."""
    canvas = _base(rng, 0.6)
    canvas.add_gauge(_gauge_value(rng), rng.randint(80, 230))
    extra = rng.random()
    if extra < 0.35:
        _add_number(canvas)
    elif extra < 0.5:
        _add_word(canvas)
    return canvas


def mixed_canvas(rng: Random) -> Canvas:
    """A few of everything that is not a surface."""
    canvas = _base(rng, 0.6)
    _add_shapes(canvas, rng.randint(1, 4), 36, 70)
    _add_number(canvas)
    if rng.random() < 0.5:
        canvas.add_gauge(_gauge_value(rng), rng.randint(80, 130))
    else:
        _add_word(canvas)
    return canvas


def _material(canvas: Canvas) -> drawing.Rgb:
    """Cover the canvas with a material; returns the colour of its defects."""
    rng = canvas.rng
    level = rng.randint(120, 205)
    color = drawing.jitter(rng, (level, level - rng.randint(0, 30), level - rng.randint(0, 60)), 15)
    canvas.picture = drawing.surface(rng, rng.choice(drawing.SURFACES), color)
    canvas.labels["background"][:] = canvas.labels["pattern"][:] = -1
    return drawing.jitter(rng, drawing.shade(color, rng.uniform(-0.85, -0.6)), 8)


def surface_canvas(rng: Random) -> Canvas:
    """A material without or with defects: one large, or one to three tiny ones."""
    canvas = Canvas(rng, "gray", "plain")
    dark = _material(canvas)
    roll = rng.random()
    if roll < 0.3:
        canvas.add_defect(rng.choice(drawing.DEFECTS), False, dark)
    elif roll < 0.6:
        kind = rng.choice(drawing.DEFECTS)
        for _ in range(rng.randint(1, 2)):
            canvas.add_defect(kind, True, dark)
    return canvas


def dense_canvas(rng: Random) -> Canvas:
    """A collage that fills every part of the picture: for per-cell labels only, nothing is asked about it."""
    canvas = _base(rng, 0.5)
    dark: drawing.Rgb = drawing.shade(drawing.COLORS[canvas.background], -0.7)
    if rng.random() < 0.2:
        dark = _material(canvas)
    columns, rows = rng.choice([1, 2, 2, 3, 3, 4]), rng.choice([2, 3, 3, 4, 4, 5, 6])
    wide, high = drawing.SIDE / columns, drawing.SIDE / rows
    for slot in range(columns * rows):
        left, top = (slot % columns) * wide, (slot // columns) * high
        within: Box = (left + 1, top + 1, left + wide - 1, top + high - 1)
        room = min(wide, high) - 6
        color = drawing.contrasting(rng, canvas.background)
        roll = rng.random()
        if roll < 0.17 and room >= 32:
            canvas.add_shape(rng.choice(drawing.SHAPES), color, rng.randint(30, int(min(room, 110))), within)
        elif roll < 0.27 and room >= 76:
            canvas.add_gauge(_gauge_value(rng), rng.randint(72, int(room)), within)
        elif roll < 0.34 and canvas.background != "black":
            canvas.add_defect(rng.choice(drawing.DEFECTS), rng.random() < 0.5, dark, within)
        elif roll < 0.97:
            word = rng.random() < 0.2
            text = rng.choice(WORDS) if word else _number(rng)
            most = int(min(room / 1.05, (wide - 8) / (0.72 * len(text))))
            if most >= 17:
                ink = drawing.print_ink(rng, canvas.background)
                canvas.add_text(text, ink, rng.randint(17, min(most, 110)), within)
    return canvas


FAMILIES = {
    "shapes": shapes_canvas,
    "print": print_canvas,
    "gauge": gauge_canvas,
    "mixed": mixed_canvas,
    "surface": surface_canvas,
    "dense": dense_canvas,
}
ASKED_FAMILIES = ["shapes", "print", "gauge", "mixed", "surface"]


def _corner(center: tuple[float, float]) -> str | None:
    across, down = center[0] - drawing.SIDE / 2, center[1] - drawing.SIDE / 2
    if min(abs(across), abs(down)) < 26:
        return None
    return f"{'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"


def _shape_questions(rng: Random, shapes: list[Thing]) -> Iterator[Question]:
    names, colors = [shape.value for shape in shapes], [shape.color for shape in shapes]
    yield _ask(rng, "count", str(len(shapes)))
    for shape in shapes:
        if names.count(shape.value) == 1:
            yield _ask(rng, "shape_color", shape.color, shape.value)
            corner = _corner(shape.center)
            if corner:
                yield _ask(rng, "where", corner, shape.value)
        if colors.count(shape.color) == 1:
            yield _ask(rng, "color_shape", shape.value, shape.color)


def read_kind(size: int) -> str:
    """The kind of a number's question by its print size in pixels."""
    return "read_small" if size < SMALL_PRINT else "read_medium" if size < LARGE_PRINT else "read_large"


def _questions(canvas: Canvas, family: str) -> Iterator[Question]:
    rng, things = canvas.rng, canvas.things
    if family == "surface":
        tiny = any(thing.color == "tiny" for thing in things) or (not things and rng.random() < 0.5)
        yield _ask(rng, "defect_tiny" if tiny else "defect", "yes" if things else "no")
        if things and not tiny:
            yield _ask(rng, "defect_kind", things[0].value)
        return
    yield _ask(rng, "background", canvas.background)
    yield _ask(rng, "pattern", canvas.pattern)
    shapes = [thing for thing in things if thing.family == "shape"]
    if shapes:
        yield from _shape_questions(rng, shapes)
    for thing in things:
        if thing.family == "number":
            yield _ask(rng, read_kind(thing.size), thing.value)
        elif thing.family == "word":
            yield _ask(rng, "word", thing.value)
        elif thing.family == "gauge":
            if int(thing.value) % 10 == 0:
                yield _ask(rng, "gauge", thing.value)
            yield _ask(rng, "gauge_fine", thing.value)


def scene(split: str, number: int | str, family: str | None = None) -> Scene:
    """The picture of that number in a split ("train", "held-out" or any other name), drawn anew each time."""
    rng = Random(f"{split}/{number}")
    chosen = rng.choice(ASKED_FAMILIES)
    canvas = FAMILIES[family or chosen](rng)
    questions = [] if family == "dense" else list(_questions(canvas, family or chosen))
    return Scene(canvas.finish(), canvas.labels, canvas.things, questions)


def pair_questions(rng: Random, first: Scene, second: Scene) -> list[Question]:
    """What may be asked about two pictures shown together, in this order."""
    questions = []
    names = [{thing.value for thing in scene.things if thing.family == "shape"} for scene in (first, second)]
    counts = [sum(thing.family == "shape" for thing in scene.things) for scene in (first, second)]
    numbers = [[thing.value for thing in scene.things if thing.family == "number"] for scene in (first, second)]
    only = sorted(names[0] ^ names[1])
    if only:
        name = rng.choice(only)
        questions.append(_ask(rng, "two_which", "first" if name in names[0] else "second", name))
    if min(counts) > 0 and counts[0] != counts[1]:
        questions.append(_ask(rng, "two_more", "first" if counts[0] > counts[1] else "second"))
    for which, found in zip(("first", "second"), numbers, strict=True):
        if found:
            questions.append(_ask(rng, "two_read", found[0], which))
    return questions


def pair(split: str, number: int | str) -> tuple[Scene, Scene, list[Question]]:
    """Two pictures of shapes and print, and the questions about both."""
    rng = Random(f"{split}/pair/{number}")
    first, second = (
        scene(split, f"pair/{number}/{which}", rng.choice(["shapes", "mixed", "print"]))
        for which in ("first", "second")
    )
    return first, second, pair_questions(rng, first, second)


def examples(seed: int, count: int, kinds: Collection[str] | None = None, split: str = "held-out") -> Iterator[Example]:
    """``count`` examples, spread evenly over ``kinds`` (default: all), one question each.

    The same arguments always give the same examples. Raises ValueError for an unknown kind.
    """
    wanted = list(KINDS if kinds is None else kinds)
    if unknown := set(wanted) - set(KINDS):
        raise ValueError(f"unknown kinds of question: {sorted(unknown)}; known: {KINDS}")
    number = 0
    for index in range(count):
        kind = wanted[index % len(wanted)]
        while True:
            pictures, asked = _draw(split, f"{seed}/{number}", kind)
            number += 1
            fitting = [question for question in asked if question.kind == kind]
            if fitting:
                yield Example(pictures, fitting[0].text, fitting[0].answer, kind)
                break


def _draw(split: str, number: str, kind: str) -> tuple[list[Image.Image], list[Question]]:
    if kind.startswith("two_"):
        first, second, questions = pair(split, number)
        return [first.picture, second.picture], questions
    family = _FAMILY_OF.get(kind)
    found = scene(split, number, family or Random(number).choice(["shapes", "print", "gauge", "mixed"]))
    return [found.picture], found.questions


_FAMILY_OF = {
    **dict.fromkeys(["defect", "defect_tiny", "defect_kind"], "surface"),
    **dict.fromkeys(["shape_color", "color_shape", "count", "where"], "shapes"),
    **dict.fromkeys(["gauge", "gauge_fine"], "gauge"),
    **dict.fromkeys(["read_large", "read_medium", "read_small", "word"], "print"),
}
