"""Pictures are a function of their seed, and every answer follows from what was drawn."""

from __future__ import annotations

import numpy as np
import pytest

from training import scenes
from training.canvas import CHARACTERS, HEADS


def _many(count: int = 60) -> list[scenes.Scene]:
    return [scenes.scene("test", number) for number in range(count)]


def test_a_scene_is_a_function_of_its_seed() -> None:
    for family in scenes.FAMILIES:
        first, second = scenes.scene("test", 7, family), scenes.scene("test", 7, family)
        assert first.picture.tobytes() == second.picture.tobytes()
        assert first.questions == second.questions


def test_held_out_pictures_are_not_training_pictures() -> None:
    train = {scenes.scene("train", number).picture.tobytes() for number in range(30)}
    held_out = {scenes.scene("held-out", number).picture.tobytes() for number in range(30)}
    assert not train & held_out


def test_examples_repeat_and_default_to_the_held_out_split() -> None:
    first, second = (list(scenes.examples(3, 20)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert (one.question, one.answer, one.kind) == (other.question, other.answer, other.kind)
        assert [picture.tobytes() for picture in one.pictures] == [picture.tobytes() for picture in other.pictures]
    trained = list(scenes.examples(3, 20, split="train"))
    assert all(
        one.pictures[0].tobytes() != other.pictures[0].tobytes() for one, other in zip(first, trained, strict=True)
    )


def test_every_kind_can_be_asked_for() -> None:
    assert [example.kind for example in scenes.examples(0, len(scenes.KINDS))] == scenes.KINDS
    with pytest.raises(ValueError, match="unknown kinds"):
        list(scenes.examples(0, 1, ["poetry"]))


def test_pictures_have_the_encoders_size() -> None:
    for example in scenes.examples(5, 36):
        assert len(example.pictures) == (2 if example.kind.startswith("two_") else 1)
        assert all(picture.size == (336, 336) and picture.mode == "RGB" for picture in example.pictures)


def test_answers_follow_from_what_was_drawn() -> None:
    for found in _many():
        shapes = [thing for thing in found.things if thing.family == "shape"]
        for question in found.questions:
            if question.kind == "count":
                assert question.answer == str(len(shapes))
            if question.kind == "shape_color":
                assert [s.color for s in shapes if s.value in question.text] == [question.answer]
            if question.kind == "color_shape":
                assert [s.value for s in shapes if f" {s.color}?" in question.text] == [question.answer]
            if question.kind.startswith("read"):
                assert question.answer in [thing.value for thing in found.things if thing.family == "number"]
            if question.kind.startswith("defect") and question.answer in ("yes", "no"):
                assert (question.answer == "yes") == bool(found.things)


def test_print_size_names_the_kind_of_reading() -> None:
    assert [scenes.read_kind(size) for size in (18, 29, 30, 55, 56, 119)] == [
        "read_small",
        "read_small",
        "read_medium",
        "read_medium",
        "read_large",
        "read_large",
    ]


def test_cell_labels_are_classes_and_spell_the_text() -> None:
    for number in range(40):
        found = scenes.scene("test", number, "print")
        for name, cells in found.labels.items():
            assert cells.shape == (24, 24)
            assert -1 <= int(cells.min()) <= int(cells.max()) < HEADS[name]
        for thing in found.things:
            if thing.family == "number" and thing.size > 40:
                labelled = {CHARACTERS[label - 1] for label in np.unique(found.labels["char"]) if label > 0}
                assert set(thing.value) <= labelled


def test_shapes_are_numbered_from_left_to_right() -> None:
    for number in range(30):
        found = scenes.scene("test", number, "shapes")
        assert int(found.labels["ordinal"].max()) == len(found.things)
