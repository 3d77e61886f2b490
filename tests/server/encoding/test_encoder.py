"""`PictureEncoder` turns pictures into pooled features: each picture once, each failure where it belongs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client import REGISTRY
from tower import (
    CHANNELS,
    FACTORS,
    POISON,
    POLICY,
    Tower,
    assert_same,
    encoder_of,
    flat,
    gentle,
    noise,
    truncated,
    until,
    unused_name,
)
from vllm.multimodal.media import MediaWithBytes

from server.encoding.content import content_key
from server.encoding.encoder import Picture, PictureEncoder
from server.errors import EncodeFailedError, PictureError
from server.policy import DfmrOptions


@pytest.fixture
def tower() -> Tower:
    return Tower()


@pytest.fixture
async def encoder(tower: Tower) -> AsyncIterator[PictureEncoder]:
    made = encoder_of(tower)
    yield made
    tower.open.set()
    await until(lambda: not made._in_flight)
    made.close()


VARIED = [Picture(p) for p in (flat(), noise(1), gentle(2), flat(200), gentle(3), noise(4), gentle(5))]


async def test_pictures_get_as_many_tokens_as_they_are_worth(encoder: PictureEncoder) -> None:
    plain, dense = await encoder.encode([Picture(flat()), Picture(noise(1))], POLICY)
    assert (plain.features.factor, plain.features.grid, len(plain.features.tensor)) == (4, (2, 2), 4)
    assert (dense.features.factor, dense.features.grid, len(dense.features.tensor)) == (1, (8, 8), 64)
    assert dense.features.tensor.shape[1] == CHANNELS
    assert len(dense.scores) == len(FACTORS)


async def test_with_an_event_loop_and_without_results_are_the_same(tower: Tower, encoder: PictureEncoder) -> None:
    offline = encoder_of(Tower(), max_batch=3)
    one, other = await encoder.encode(VARIED, POLICY), offline.encode_sync(VARIED, POLICY)
    assert_same(one, other)
    assert {p.features.factor for p in one} == {1, 2, 4}
    assert not any(p.cached for p in [*one, *other])


async def test_results_keep_the_order_of_the_request(encoder: PictureEncoder) -> None:
    together = await encoder.encode(VARIED, POLICY)
    apart = [(await encoder.encode([picture], POLICY))[0] for picture in VARIED]
    assert_same(together, apart)


async def test_no_batch_is_larger_than_the_operator_allows() -> None:
    tower = Tower()
    await encoder_of(tower, max_batch=2).encode([Picture(noise(i)) for i in range(9)], POLICY)
    assert max(tower.calls) <= 2
    assert tower.encoded == 9


def test_offline_batches_are_as_large_as_the_operator_allows() -> None:
    tower = Tower()
    encoder_of(tower, max_batch=4).encode_sync([Picture(noise(i)) for i in range(9)], POLICY)
    assert tower.calls == [4, 4, 1]


async def test_a_request_without_pictures_costs_nothing(tower: Tower, encoder: PictureEncoder) -> None:
    assert await encoder.encode([], POLICY) == []
    assert encoder.encode_sync([], POLICY) == []
    assert tower.calls == []


async def test_a_picture_that_is_sent_again_is_not_encoded_again(tower: Tower, encoder: PictureEncoder) -> None:
    first = await encoder.encode([Picture(gentle(1)), Picture(noise(2))], POLICY)
    again = await encoder.encode([Picture(noise(2)), Picture(gentle(1))], POLICY)
    assert tower.encoded == 2
    assert_same(again, first[::-1])
    assert [p.cached for p in [*first, *again]] == [False, False, True, True]


def test_offline_a_picture_that_is_sent_again_is_not_encoded_again(tower: Tower) -> None:
    encoder = encoder_of(tower)
    (first,) = encoder.encode_sync([Picture(gentle(1))], POLICY)
    again, other = encoder.encode_sync([Picture(gentle(1)), Picture(gentle(2))], POLICY)
    assert tower.calls == [1, 1]
    assert_same([again], [first])
    assert [first.cached, again.cached, other.cached] == [False, True, False]


async def test_a_cache_of_no_bytes_is_off() -> None:
    tower = Tower()
    encoder = encoder_of(tower, cache_bytes=0)
    for _ in range(2):
        (picture,) = await encoder.encode([Picture(gentle(1))], POLICY)
        assert not picture.cached
    assert tower.encoded == 2


async def test_a_picture_twice_in_one_request_is_encoded_once(tower: Tower, encoder: PictureEncoder) -> None:
    one, other = await encoder.encode([Picture(gentle(1)), Picture(gentle(1))], POLICY)
    assert tower.encoded == 1
    assert_same([one], [other])
    assert {one.cached, other.cached} == {False, True}  # whichever was hashed first pays


def test_offline_a_picture_twice_in_one_request_is_encoded_once(tower: Tower) -> None:
    one, other = encoder_of(tower).encode_sync([Picture(gentle(1)), Picture(gentle(1))], POLICY)
    assert tower.encoded == 1
    assert_same([one], [other])


async def test_a_picture_with_two_details_is_encoded_for_each(tower: Tower, encoder: PictureEncoder) -> None:
    high, low = await encoder.encode([Picture(gentle(1), "high"), Picture(gentle(1), "low")], POLICY)
    assert (high.features.factor, low.features.factor) == (1, 4)
    assert high.key != low.key


async def test_another_policy_that_comes_to_a_cached_factor_needs_no_encode(
    tower: Tower, encoder: PictureEncoder
) -> None:
    (plain,) = await encoder.encode([Picture(flat())], POLICY)
    assert plain.features.factor == 4
    stricter = POLICY.merge(DfmrOptions(tau=0.05))
    (again,) = await encoder.encode([Picture(flat())], stricter)
    (wished,) = await encoder.encode([Picture(flat(), "low")], stricter)
    assert tower.encoded == 1
    assert [again.cached, wished.cached] == [True, True]
    assert_same([again, wished], [plain, plain])


async def test_another_policy_that_comes_to_another_factor_is_encoded_and_then_cached(
    tower: Tower, encoder: PictureEncoder
) -> None:
    (pooled,) = await encoder.encode([Picture(flat())], POLICY)
    (whole,) = await encoder.encode([Picture(flat())], POLICY.merge(DfmrOptions(enabled=False)))
    assert (pooled.features.factor, whole.features.factor) == (4, 1)
    assert whole.scores == pooled.scores
    assert tower.encoded == 2
    both = await encoder.encode([Picture(flat(), "low"), Picture(flat(), "high")], POLICY)
    assert tower.encoded == 2
    assert_same(both, [pooled, whole])


async def test_keys_tell_pictures_and_factors_apart(encoder: PictureEncoder) -> None:
    pictures = [Picture(image, detail) for image in (gentle(1), gentle(2)) for detail in ("high", "low")]
    assert len({p.key for p in await encoder.encode(pictures, POLICY)}) == 4


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (truncated(), "decode"),
        ("not a picture", "decode"),
        (np.zeros((4, 4, 3)), "decode"),
        (MediaWithBytes(truncated(), b"a file's bytes"), "preprocess"),
        (Image.new("RGB", (50, 40), POISON), "nonfinite"),
    ],
    ids=["truncated", "wrong-type", "float-array", "truncated-file", "nonfinite"],
)
async def test_a_bad_picture_fails_its_request_with_its_index_and_reason(
    encoder: PictureEncoder, image: object, reason: str, sync: bool
) -> None:
    request = [Picture(noise(1)), Picture(noise(2)), Picture(image)]
    with pytest.raises(PictureError) as caught:
        _ = encoder.encode_sync(request, POLICY) if sync else await encoder.encode(request, POLICY)
    assert (caught.value.index, caught.value.reason) == (2, reason)
    assert caught.value.parameter == "image[2]"
    assert str(caught.value).startswith("image 2: ")


async def test_a_bad_picture_leaves_other_requests_alone(tower: Tower, encoder: PictureEncoder) -> None:
    tower.open.clear()
    blocking = asyncio.create_task(encoder.encode([Picture(noise(0))], POLICY))
    await until(lambda: tower.encoded == 1)
    bad = asyncio.create_task(encoder.encode([Picture(Image.new("RGB", (9, 9), POISON))], POLICY))
    good = asyncio.create_task(encoder.encode([Picture(gentle(1))], POLICY))
    await until(lambda: len(encoder._batcher._waiting) == 2)
    tower.open.set()
    with pytest.raises(PictureError, match="image 0"):
        await bad
    await blocking
    (picture,) = await good
    assert tower.calls == [1, 2]
    assert picture.features.factor in FACTORS


async def test_a_bad_picture_in_two_requests_is_named_by_each_ones_index(tower: Tower, encoder: PictureEncoder) -> None:
    tower.open.clear()
    poison = Picture(Image.new("RGB", (9, 9), POISON))
    requests = [[poison], [Picture(noise(1)), poison]]
    tasks = [asyncio.create_task(encoder.encode(request, POLICY)) for request in requests]
    await until(lambda: sorted(f.waiters for f in encoder._in_flight.values()) == [1, 2])
    tower.open.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error.index for error in errors if isinstance(error, PictureError)] == [0, 1]


async def test_a_picture_that_failed_is_tried_again(tower: Tower, encoder: PictureEncoder) -> None:
    tower.failure = EncodeFailedError("out of memory")
    with pytest.raises(EncodeFailedError, match="out of memory"):
        await encoder.encode([Picture(gentle(1))], POLICY)
    tower.failure = None
    (picture,) = await encoder.encode([Picture(gentle(1))], POLICY)
    assert not picture.cached


async def test_a_policy_that_a_picture_cannot_meet_is_refused_before_any_work(
    tower: Tower, encoder: PictureEncoder
) -> None:
    policy = POLICY.merge(DfmrOptions(max_tokens_per_image=3))
    with pytest.raises(PictureError, match=r"image 1: .*3 tokens") as caught:
        await encoder.encode([Picture(noise(1), "high"), Picture(noise(2))], policy)
    assert caught.value.reason == "policy"
    assert tower.calls == []


async def test_cancelling_one_of_two_waiters_leaves_the_other_its_picture(
    tower: Tower, encoder: PictureEncoder
) -> None:
    tower.open.clear()
    gone, stays = (asyncio.create_task(encoder.encode([Picture(gentle(1))], POLICY)) for _ in range(2))
    await until(lambda: [f.waiters for f in encoder._in_flight.values()] == [2])
    gone.cancel()
    await until(lambda: [f.waiters for f in encoder._in_flight.values()] == [1])
    tower.open.set()
    (picture,) = await stays
    assert gone.cancelled()
    assert picture.features.factor in FACTORS
    assert tower.encoded == 1


async def test_cancelling_all_waiters_drops_the_work(tower: Tower, encoder: PictureEncoder) -> None:
    tower.open.clear()
    running = asyncio.create_task(encoder.encode([Picture(noise(0))], POLICY))
    await until(lambda: tower.encoded == 1)
    waiters = [asyncio.create_task(encoder.encode([Picture(gentle(1))], POLICY)) for _ in range(2)]
    await until(lambda: len(encoder._batcher._waiting) == 1)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    await until(lambda: len(encoder._in_flight) == 1)
    tower.open.set()
    await running
    await until(lambda: encoder._batcher._drain is not None and encoder._batcher._drain.done())
    assert tower.calls == [1]
    assert not encoder._in_flight


async def test_a_failed_picture_takes_the_rest_of_its_request_out_of_the_queue(
    tower: Tower, encoder: PictureEncoder
) -> None:
    tower.open.clear()
    running = asyncio.create_task(encoder.encode([Picture(noise(0))], POLICY))
    await until(lambda: tower.encoded == 1)
    with pytest.raises(PictureError):
        await encoder.encode([Picture(noise(1)), Picture("not a picture")], POLICY)
    await until(lambda: len(encoder._in_flight) == 1)
    tower.open.set()
    await running
    await until(lambda: encoder._batcher._drain is not None and encoder._batcher._drain.done())
    assert tower.calls == [1]


class Inline(Executor):
    """Runs what it is given at once, so that the steps of two requests can be interleaved exactly."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.mark.parametrize("steps", range(8))
async def test_a_request_for_a_picture_whose_last_waiter_just_left_gets_it(
    tower: Tower, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    encoder = encoder_of(tower)
    monkeypatch.setattr(encoder, "_threads", Inline())
    tower.open.clear()
    gone = asyncio.create_task(encoder.encode([Picture(gentle(1))], POLICY))
    await until(lambda: tower.encoded == 1)

    comes = asyncio.create_task(encoder.encode([Picture(gentle(1))], POLICY))
    for _ in range(steps):
        await asyncio.sleep(0)
    gone.cancel()
    for _ in range(8):
        await asyncio.sleep(0)
    tower.open.set()

    done, _ = await asyncio.wait([comes], timeout=5)
    assert done
    assert not comes.cancelled()
    assert comes.result()[0].features.factor in FACTORS
    await until(lambda: not encoder._in_flight)


async def test_hits_and_misses_are_counted_once_per_picture() -> None:
    tower, name = Tower(), unused_name()
    encoder = encoder_of(tower, name=name)
    await encoder.encode([Picture(gentle(1)), Picture(gentle(1)), Picture(gentle(2))], POLICY)
    await encoder.encode([Picture(gentle(1)), Picture(gentle(2)), Picture(gentle(3))], POLICY)
    encoder.encode_sync([Picture(gentle(3)), Picture(gentle(4))], POLICY)

    def sample(metric: str) -> float | None:
        return REGISTRY.get_sample_value(metric, {"model_name": name})

    assert sample("dfmr_cache_misses_total") == tower.encoded == 4
    assert sample("dfmr_cache_hits_total") == 4
    assert sample("dfmr_preprocess_seconds_count") == 4
    assert sample("dfmr_encode_batch_size_sum") == 4


async def test_warming_up_encodes_one_blank_picture_and_caches_nothing(tower: Tower, encoder: PictureEncoder) -> None:
    await encoder.warm_up()
    assert tower.calls == [1]
    assert len(encoder._cache) == 0


def test_the_same_file_has_the_same_key_and_another_way_of_decoding_it_another() -> None:
    def media(data: bytes, config: dict[str, Any] | None = None) -> MediaWithBytes[Image.Image]:
        return MediaWithBytes(flat(), data, config)

    assert content_key(media(b"file")) == content_key(media(b"file"))
    assert content_key(media(b"file")) != content_key(media(b"another file"))
    assert content_key(media(b"file")) != content_key(media(b"file", {"image_mode": "RGB"}))


def test_arrays_tensors_and_pictures_of_the_same_pixels_have_the_same_key() -> None:
    pixels = np.asarray(noise(1))
    assert content_key(pixels) == content_key(torch.from_numpy(pixels.copy())) == content_key(noise(1))


def test_pictures_of_the_same_bytes_in_another_shape_or_mode_have_another_key() -> None:
    data = bytes(range(24))
    pictures = [
        Image.frombytes("L", (6, 4), data),
        Image.frombytes("L", (4, 6), data),
        Image.frombytes("RGB", (4, 2), data),
        Image.frombytes("RGB", (2, 4), data),
    ]
    assert len(set(map(content_key, pictures))) == 4


def test_pictures_that_differ_in_their_palette_only_have_different_keys() -> None:
    red, blue = Image.new("P", (8, 8)), Image.new("P", (8, 8))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert red.convert("RGB").tobytes() != blue.convert("RGB").tobytes()
    assert content_key(red) != content_key(blue)
