"""A prompt holds exactly one image token per kept visual token, where its picture stood."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.multimodal.inputs import PlaceholderRange

from server.encoding.cache import Features
from server.encoding.jobs import EncodedPicture
from server.vllm_plugin.processing import FEATURES_KEY, prompt_with_features

IMAGE = 32000


def picture(rows: int, columns: int, key: str = "k") -> EncodedPicture:
    tensor = torch.arange(rows * columns * 3.0).view(rows * columns, 3)
    return EncodedPicture(Features(tensor, (rows, columns), 2), (0.0, 0.5), key, cached=False)


def test_each_picture_takes_the_place_of_its_token() -> None:
    prompt = prompt_with_features([1, IMAGE, 5, IMAGE, 6], IMAGE, [picture(2, 2), picture(1, 3)])
    assert prompt["prompt_token_ids"] == [1, *[IMAGE] * 4, 5, *[IMAGE] * 3, 6]
    assert prompt["mm_placeholders"] == {
        "image": [PlaceholderRange(offset=1, length=4), PlaceholderRange(offset=6, length=3)]
    }


def test_pictures_may_stand_side_by_side_and_at_both_ends() -> None:
    prompt = prompt_with_features([IMAGE, IMAGE, 7, IMAGE], IMAGE, [picture(1, 1), picture(1, 2), picture(3, 1)])
    assert prompt["prompt_token_ids"] == [*[IMAGE] * 3, 7, *[IMAGE] * 3]
    assert [(p.offset, p.length) for p in prompt["mm_placeholders"]["image"]] == [(0, 1), (1, 2), (4, 3)]


def test_features_and_their_identity_come_with_the_prompt() -> None:
    pictures = [picture(2, 2, "first"), picture(1, 3, "second")]
    prompt = prompt_with_features([IMAGE, 9, IMAGE], IMAGE, pictures)
    assert prompt["type"] == "multimodal"
    assert prompt["mm_hashes"] == {"image": ["first", "second"]}
    items = prompt["mm_kwargs"]["image"]
    for item, one in zip(items, pictures, strict=True):
        assert item is not None
        assert item.get_data()[FEATURES_KEY] is one.features.tensor


def test_a_prompt_without_pictures_stays_as_it_is() -> None:
    prompt = prompt_with_features([1, 2, 3], IMAGE, [])
    assert prompt["prompt_token_ids"] == [1, 2, 3]
    assert prompt["mm_placeholders"] == {"image": []}


def test_an_image_token_that_somebody_wrote_stays_what_it_is() -> None:
    prompt = prompt_with_features([1, IMAGE, 5, IMAGE, 6], IMAGE, [picture(2, 2)])
    assert prompt["prompt_token_ids"] == [1, *[IMAGE] * 4, 5, IMAGE, 6]
    assert prompt["mm_placeholders"] == {"image": [PlaceholderRange(offset=1, length=4)]}


@pytest.mark.parametrize(("tokens", "pictures"), [(0, 1), (1, 2)])
def test_a_prompt_with_too_few_placeholders_is_refused(tokens: int, pictures: int) -> None:
    with pytest.raises(ValueError, match=f"{tokens} image placeholders for {pictures} images"):
        prompt_with_features([1, *[IMAGE] * tokens], IMAGE, [picture(1, 1)] * pictures)


@given(
    texts=st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=6),
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=5, max_size=5),
)
def test_outside_the_placeholders_the_prompt_is_unchanged(texts: list[list[int]], sizes: list[tuple[int, int]]) -> None:
    pictures = [picture(*size) for size in sizes[: len(texts) - 1]]
    prompt = [*texts[0], *(token for text in texts[1:] for token in (IMAGE, *text))]

    made = prompt_with_features(prompt, IMAGE, pictures)

    ids, ranges = made["prompt_token_ids"], made["mm_placeholders"]["image"]
    inside = {i for r in ranges for i in range(r.offset, r.offset + r.length)}
    assert [token for i, token in enumerate(ids) if i not in inside] == [token for text in texts for token in text]
    assert {i for i, token in enumerate(ids) if token == IMAGE} == inside
    assert [r.length for r in ranges] == [rows * columns for rows, columns in sizes[: len(pictures)]]
