"""A picture's file is hashed when it is read, and decoded only where its pixels are wanted."""

import threading
from collections.abc import AsyncIterator
from io import BytesIO
from typing import ClassVar

import pytest
from pictures import encoded
from PIL import Image, UnidentifiedImageError
from tower import POLICY, Tower, assert_same, encoder_of, flat, noise
from vllm.multimodal.media import ImageMediaIO, MediaWithBytes

from server.encoding.content import PictureFile, as_pil, content_key, size_of
from server.encoding.encoder import Picture, PictureEncoder
from server.errors import PictureError


class Reader(ImageMediaIO):
    """vLLM's reader, which counts; its count is not part of how it decodes."""

    decoded = 0
    threads: ClassVar[set[threading.Thread]] = set()

    def load_bytes(self, data: bytes) -> MediaWithBytes[Image.Image]:
        type(self).decoded += 1
        self.threads.add(threading.current_thread())
        return super().load_bytes(data)


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    Reader.decoded = 0
    Reader.threads.clear()


@pytest.fixture
async def encoder() -> AsyncIterator[PictureEncoder]:
    made = encoder_of(Tower())
    yield made
    made.close()


def file_of(picture: Image.Image, file_format: str = "PNG", **how: object) -> PictureFile:
    data = BytesIO()
    picture.save(data, file_format, **how)
    return PictureFile(data.getvalue(), Reader())


def broken() -> PictureFile:
    """A file that ends too early, which is noticed when it is decoded."""
    return PictureFile(encoded(noise(1))[:200], Reader())


BOX = (0.0, 0.0, 0.5, 0.5)


async def test_a_file_and_its_pixels_give_the_same_features(encoder: PictureEncoder) -> None:
    pictures = [flat(), noise(1)]
    files = await encoder.encode([Picture(file_of(p)) for p in pictures], POLICY)
    pixels = await encoder.encode([Picture(p) for p in pictures], POLICY)
    assert not any(p.cached for p in [*files, *pixels])
    assert_same(files, [p._replace(key=file.key) for p, file in zip(pixels, files, strict=True)])


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_file_whose_features_are_cached_is_not_decoded(encoder: PictureEncoder, sync: bool) -> None:
    for count in (1, 1):
        request = [Picture(file_of(noise(1)))]
        (found,) = encoder.encode_sync(request, POLICY) if sync else await encoder.encode(request, POLICY)
        assert Reader.decoded == count
    assert found.cached


async def test_the_same_file_twice_in_a_request_is_decoded_once(encoder: PictureEncoder) -> None:
    one, other = await encoder.encode([Picture(file_of(noise(1))), Picture(file_of(noise(1)))], POLICY)
    assert Reader.decoded == 1
    assert one.key == other.key


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_broken_file_fails_its_request_with_its_index(encoder: PictureEncoder, sync: bool) -> None:
    request = [Picture(file_of(noise(1))), Picture(broken())]
    with pytest.raises(PictureError, match=r"image 1: .*truncated") as caught:
        _ = encoder.encode_sync(request, POLICY) if sync else await encoder.encode(request, POLICY)
    assert (caught.value.index, caught.value.reason) == (1, "decode")


def test_what_is_no_picture_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(UnidentifiedImageError):
        PictureFile(b"no picture", Reader())
    assert Reader.decoded == 0


async def test_a_broken_file_with_boxes_is_named(encoder: PictureEncoder) -> None:
    with pytest.raises(PictureError, match=r"image 1: .*truncated"):
        await encoder.look_at([Picture(file_of(flat())), Picture(broken(), protect=(BOX,))])
    assert Reader.decoded == 1


async def test_files_with_boxes_are_decoded_in_threads_and_once(encoder: PictureEncoder) -> None:
    pictures = [Picture(file_of(noise(seed)), protect=(BOX,)) for seed in range(3)]
    await encoder.look_at([Picture(file_of(flat())), *pictures])
    assert Reader.decoded == 3
    assert threading.main_thread() not in Reader.threads
    assert all(choice.protected is not None for choice in encoder.choices(pictures, POLICY))
    assert Reader.decoded == 3


async def test_a_jpeg_files_size_is_read_without_decoding_it(encoder: PictureEncoder) -> None:
    picture = Picture(file_of(noise(1), "JPEG"), protect=(BOX,))
    await encoder.look_at([picture])
    assert encoder.choices([picture], POLICY)[0].protected is not None
    assert Reader.decoded == 0


def test_an_oversized_file_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(Image.DecompressionBombError, match="pixels"):
        file_of(Image.new("1", (20000, 10000)))
    assert Reader.decoded == 0


def test_a_file_above_the_operators_limit_is_refused_as_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "100")
    with pytest.raises(PictureError, match="exceed the maximum of 100 pixels") as caught:
        file_of(flat()).decoded()
    assert (caught.value.index, caught.value.reason) == (None, "too_large")


def test_keys_tell_files_apart_and_ways_of_decoding_them() -> None:
    data, other = encoded(flat()), encoded(noise(1))
    keys = [
        content_key(PictureFile(*args))
        for args in (
            (data, ImageMediaIO()),
            (other, ImageMediaIO()),
            (data, ImageMediaIO(image_mode=None)),
            (data, ImageMediaIO(rgba_background_color=(0, 0, 0))),
        )
    ]
    assert len(set(keys)) == 4
    assert keys[0] == content_key(PictureFile(data, ImageMediaIO()))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_files_size_is_that_of_its_pixels_turned_upright(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = file_of(Image.new("RGB", (40, 20)), file_format, exif=exif)
    assert size_of(file) == as_pil(file).size == ((20, 40) if orientation > 4 else (40, 20))


def test_transparency_falls_on_the_readers_background() -> None:
    data = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    found = PictureFile(data, ImageMediaIO(rgba_background_color=(0, 0, 9))).decoded()
    assert found.getpixel((0, 0)) == (0, 0, 9)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_without_its_file_is_turned_upright_as_with_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = BytesIO()
    noise(1).resize((40, 20)).save(data, "PNG", exif=exif)
    alone = Image.open(BytesIO(data.getvalue()))
    assert as_pil(alone).tobytes() == PictureFile(data.getvalue(), ImageMediaIO()).decoded().tobytes()
    assert content_key(alone) == content_key(as_pil(alone))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_picture_without_its_file_falls_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    if mode == "P":
        clear.info["transparency"] = clear.getpixel((0, 0))
    assert as_pil(clear).getpixel((0, 0)) == (255, 255, 255)
    assert content_key(clear) == content_key(Image.new("RGB", (4, 4), (255, 255, 255)))
