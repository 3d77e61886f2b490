"""Packed questions do not see each other and start where a single question would."""

from __future__ import annotations

import pytest

from training.packing import IGNORED, Packer
from training.scenes import Question
from training.tokenizer import build

ASKED = [Question("count", "Count the shapes.", "3"), Question("read_large", "Read the number.", "407")]


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer(build())


@pytest.mark.parametrize("text", ["What number is printed?", "Grüße, 你好!", "a\nb  c", "OPEN 0837"])
def test_any_text_survives(text: str) -> None:
    tokenizer = build()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_digits_are_single_tokens(packer: Packer) -> None:
    assert len(packer.encode("4071")) == 4


def test_a_question_sees_the_picture_but_no_other_question(packer: Packer) -> None:
    packed = packer.pack([ASKED], [4])
    start = len(packer.prefix([4]))
    first = start + len(packer.encode(ASKED[0].text)) + 3
    visible = packed.mask[0, 0] == 0
    assert bool(visible[first, :start].all())
    assert not bool(visible[first:, start:first].any())
    assert packed.positions[0, first] == packed.positions[0, start] == start


def test_turns_see_what_was_said(packer: Packer) -> None:
    packed = packer.pack([ASKED], [4], turns=True)
    assert bool((packed.mask[0, 0, -1] == 0).all())
    assert packed.positions[0].tolist() == list(range(packed.ids.shape[1]))


def test_answers_and_their_ends_are_the_targets(packer: Packer) -> None:
    packed = packer.pack([ASKED, ASKED[:1]], [4, 2])
    wanted = [*packer.encode("3"), packer.eos, *packer.encode("407"), packer.eos]
    assert packed.targets[0][packed.targets[0] != IGNORED].tolist() == wanted
    for (first, last), question in zip(packed.owner[0], ASKED, strict=True):
        assert packed.targets[0, first:last].tolist() == [*packer.encode(question.answer), packer.eos]
