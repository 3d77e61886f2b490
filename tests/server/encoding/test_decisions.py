"""What a request's pictures keep: budgets, regions and protected boxes, whatever came before and beside them."""

import asyncio
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tower import CHANNELS, GRID, POLICY, Tower, assert_same, encoder_of, flat, gentle, noise

from server.encoding.decisions import Budget
from server.encoding.encoder import Picture, PictureEncoder
from server.encoding.jobs import EncodedPicture
from server.errors import PictureError
from server.policy import DfmrOptions, Policy
from server.vllm_plugin.processing import prompt_with_features

IMAGE = 7
SEEN = (flat(), noise(1), gentle(2), noise(3), gentle(4), gentle(5))
BOX = (0.4, 0.4, 0.6, 0.6)
REGIONS = POLICY.merge(DfmrOptions(mode="regions"))


@cache
def encoder(name: str = "") -> PictureEncoder:
    """One for many examples: what its cache holds must not matter."""
    return encoder_of(Tower())


def kept(pictures: list[EncodedPicture]) -> int:
    return sum(len(p.features.tensor) for p in pictures)


requests = st.lists(
    st.builds(
        Picture,
        st.sampled_from(SEEN),
        st.sampled_from(["auto", "auto", "auto", "low", "high"]),
        st.sampled_from([(), (), (BOX,), ((0.0, 0.0, 0.1, 0.1), (0.7, 0.2, 0.9, 1.0))]),
    ),
    min_size=1,
    max_size=5,
)
policies = st.builds(
    lambda **options: POLICY.merge(DfmrOptions.model_validate(options)),
    mode=st.sampled_from(["picture", "regions"]),
    tau=st.sampled_from([0.0, 0.05, 0.3, 9.0]),
    factors=st.sampled_from([(1, 2, 4), (1, 2), (2, 4), (1,)]),
)


def fewest(pictures: list[Picture], policy: Policy) -> int:
    """By asking for one token, and reading what is said to be possible."""
    try:
        return kept(encoder().encode_sync(pictures, policy, Budget(1)))
    except PictureError as error:
        return int(str(error).split("possible is ")[1].split(".")[0])


@settings(max_examples=40, deadline=None)
@given(requests, policies, st.integers(0, 200))
def test_a_budget_is_kept_and_a_larger_one_never_keeps_less(pictures: list[Picture], policy: Policy, more: int) -> None:
    budget = fewest(pictures, policy) + more
    free = encoder().encode_sync(pictures, policy)
    small, large = (encoder().encode_sync(pictures, policy, Budget(size)) for size in (budget, budget + more // 2 + 1))
    assert kept(small) <= budget
    assert kept(small) <= kept(large) <= kept(free)
    if kept(free) <= budget:
        assert [p.key for p in small] == [p.key for p in free]
    for now, before in zip(small, free, strict=True):
        squeezed = now.key != before.key
        assert (now.before is not None) == squeezed
        assert now.before is None or now.before.tokens == len(before.features.tensor)


@settings(max_examples=30, deadline=None)
@given(requests, policies, st.one_of(st.none(), st.integers(0, 200)))
def test_a_prompt_has_a_placeholder_for_every_token_in_every_mode(
    pictures: list[Picture], policy: Policy, more: int | None
) -> None:
    budget = Budget(None if more is None else fewest(pictures, policy) + more)
    encoded = encoder().encode_sync(pictures, policy, budget)
    prompt = prompt_with_features([1, *[IMAGE] * len(pictures), 2], IMAGE, encoded)
    assert prompt["prompt_token_ids"].count(IMAGE) == kept(encoded)
    assert [p.length for p in prompt["mm_placeholders"]["image"]] == [len(p.features.tensor) for p in encoded]


@settings(max_examples=20, deadline=None)
@given(requests, policies, st.integers(0, 200))
def test_what_is_kept_does_not_depend_on_the_cache_or_the_batch(
    pictures: list[Picture], policy: Policy, more: int
) -> None:
    budget = Budget(fewest(pictures, policy) + more)
    warm = encoder().encode_sync(pictures, policy, budget)
    cold = encoder_of(Tower(), max_batch=2).encode_sync(pictures, policy, budget)
    together = asyncio.run(encoder_of(Tower(), cache_bytes=0).encode(pictures, policy, budget))
    assert_same(warm, cold)
    assert_same(warm, together)


@settings(max_examples=20, deadline=None)
@given(requests, policies)
def test_without_a_budget_a_picture_is_decided_as_if_alone(pictures: list[Picture], policy: Policy) -> None:
    together = encoder().encode_sync(pictures, policy)
    alone = [encoder_of(Tower()).encode_sync([picture], policy)[0] for picture in pictures]
    assert_same(together, alone)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SEEN), policies, st.integers(0, 100))
def test_protected_cells_are_never_pooled(image: Any, policy: Policy, more: int) -> None:
    pictures = [Picture(image, "auto", (BOX,)), Picture(noise(9))]
    (whole,) = encoder().encode_sync([Picture(image, "high")], policy)
    first, _ = encoder().encode_sync(pictures, policy, Budget(fewest(pictures, policy) + more))
    cells = whole.features.tensor.view(*GRID, CHANNELS)[3:5, 3:5].reshape(-1, CHANNELS)
    for cell in cells:
        assert (first.features.tensor == cell).all(1).any()


def test_regions_keep_detail_where_it_is() -> None:
    image = flat()
    image.paste(noise(1).resize((12, 10)), (12, 10))
    (picture,) = encoder_of(Tower()).encode_sync([Picture(image)], REGIONS.merge(DfmrOptions(tau=0.05)))
    layout = picture.features.layout
    assert layout is not None
    assert (layout.block, len(layout.factors), set(layout.factors)) == (2, 16, {1, 2})
    assert (picture.features.grid, picture.features.factor) == (None, None)
    assert layout.factors[0] == layout.factors[-1] == 2


def test_a_picture_that_was_measured_once_takes_part_in_a_joint_decision() -> None:
    tower = Tower()
    encoder = encoder_of(tower)
    pictures = [Picture(noise(1)), Picture(noise(2))]
    encoder.encode_sync(pictures[:1], POLICY)
    first, second = encoder.encode_sync(pictures, POLICY, Budget(80))
    assert kept([first, second]) == 80
    assert tower.encoded == 2 + (first.features.factor != 1)  # again only for a factor that the cache lacks
    again = encoder.encode_sync(pictures, POLICY, Budget(80))
    assert all(p.cached for p in again)
    assert_same(again, [first, second])


def test_a_budget_that_cannot_bind_changes_nothing_and_sends_nothing_more() -> None:
    tower = Tower()
    encoder = encoder_of(tower)
    one, other = encoder.encode_sync([Picture(noise(1)), Picture(flat())], POLICY, Budget(128, (500, 128)))
    assert (one.before, other.before) == (None, None)
    entries = list(encoder._cache._entries.values())
    assert [len(entry.features) for entry in entries] == [1, 1]


def test_a_budget_below_the_fewest_tokens_is_refused_before_any_work() -> None:
    tower = Tower()
    with pytest.raises(PictureError, match=r"max_visual_tokens: 7 .*2 pictures.*the fewest possible is 8"):
        encoder_of(tower).encode_sync([Picture(noise(1)), Picture(noise(2))], POLICY, Budget(7))
    assert tower.calls == []


@pytest.mark.parametrize(
    ("rooms", "tokens"), [((100, 90, 1), 80), ((20, 10), 20), ((7, 40), 32), ((3, 2), 8), ((-5, -90), 8)]
)
def test_the_first_room_that_can_be_met_counts(rooms: tuple[int, ...], tokens: int) -> None:
    pictures = [Picture(noise(1)), Picture(noise(2))]
    assert kept(encoder().encode_sync(pictures, POLICY, Budget(None, rooms))) == tokens


def test_what_is_asked_for_and_what_fits_both_count() -> None:
    pictures = [Picture(noise(1)), Picture(noise(2))]
    asked, fits = (
        encoder().encode_sync(pictures, POLICY, budget)[1] for budget in (Budget(20, (40,)), Budget(80, (20,)))
    )
    assert asked.before is not None
    assert fits.before is not None
    assert (asked.before.limit.option, fits.before.limit.option) == ("max_visual_tokens", "fit_context")


def test_a_limit_per_picture_holds_in_regions_and_with_protected_boxes() -> None:
    limited = REGIONS.merge(DfmrOptions(max_tokens_per_image=30))
    (picture,) = encoder().encode_sync([Picture(noise(1), "auto", (BOX,))], limited)
    assert len(picture.features.tensor) <= 30
    with pytest.raises(PictureError, match=r"image 0: .*max_tokens_per_image: 15 .*the fewest possible is 28"):
        encoder().encode_sync([Picture(noise(1), "auto", (BOX,))], limited.merge(DfmrOptions(max_tokens_per_image=15)))


def test_a_protected_picture_pools_the_rest_by_its_own_factor() -> None:
    (picture,) = encoder().encode_sync([Picture(flat(), "auto", ((0.2, 0.0, 0.3, 0.1),))], POLICY)
    assert picture.features.layout == (4, (1, 4, 4, 4))
    assert len(picture.features.tensor) == 16 + 3


def test_a_box_in_what_is_cropped_away_protects_nothing() -> None:
    wide = flat().resize((120, 40))
    (picture,) = encoder().encode_sync([Picture(wide, "auto", ((0.0, 0.0, 0.2, 1.0),))], POLICY)
    assert picture.features.factor == 4
