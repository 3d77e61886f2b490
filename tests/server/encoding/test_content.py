"""A picture's file is hashed when it is read, and decoded only where its pixels are wanted."""

from collections.abc import AsyncIterator
from io import BytesIO

import pytest
from PIL import Image
from tower import POLICY, Tower, assert_same, encoder_of, flat, noise
from vllm.multimodal.media import ImageMediaIO

from server.encoding.content import PictureFile, as_pil, content_key, size_of
from server.encoding.encoder import Picture, PictureEncoder
from server.errors import PictureError


class Reader(ImageMediaIO):
    """vLLM's reader, which counts; its count is not part of how it decodes."""

    decoded = 0

    def load_bytes(self, data: bytes) -> "object":
        type(self).decoded += 1
        return super().load_bytes(data)


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    Reader.decoded = 0


@pytest.fixture
async def encoder() -> AsyncIterator[PictureEncoder]:
    made = encoder_of(Tower())
    yield made
    made.close()


def file_of(picture: Image.Image, file_format: str = "PNG", **how: object) -> PictureFile:
    data = BytesIO()
    picture.save(data, file_format, **how)
    return PictureFile(data.getvalue(), Reader())


BROKEN = PictureFile(b"no picture", Reader())


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
    request = [Picture(file_of(noise(1))), Picture(BROKEN)]
    with pytest.raises(PictureError, match="image 1: its data is not a picture in a format that can be read") as caught:
        _ = encoder.encode_sync(request, POLICY) if sync else await encoder.encode(request, POLICY)
    assert (caught.value.index, caught.value.reason) == (1, "decode")


async def test_a_broken_file_with_boxes_is_named_before_anything_is_encoded(encoder: PictureEncoder) -> None:
    box = (0.0, 0.0, 0.5, 0.5)
    with pytest.raises(PictureError, match="image 1: its data is not a picture"):
        await encoder.look_at([Picture(file_of(flat())), Picture(BROKEN, protect=(box,))])
    assert Reader.decoded == 1


async def test_a_file_with_boxes_is_looked_at_once(encoder: PictureEncoder) -> None:
    picture = Picture(file_of(noise(1)), protect=((0.0, 0.0, 0.5, 0.5),))
    await encoder.look_at([picture])
    assert Reader.decoded == 1
    assert encoder.choices([picture], POLICY)[0].protected is not None
    assert Reader.decoded == 1


def test_an_oversized_file_is_refused_as_too_large() -> None:
    huge = file_of(Image.new("1", (20000, 10000)))
    with pytest.raises(PictureError, match="pixels") as caught:
        huge.decoded()
    assert (caught.value.index, caught.value.reason) == (None, "too_large")


def test_keys_tell_files_apart_and_ways_of_decoding_them() -> None:
    data = b"any bytes"
    keys = [
        content_key(PictureFile(*args))
        for args in (
            (data, ImageMediaIO()),
            (data + b".", ImageMediaIO()),
            (data, ImageMediaIO(image_mode=None)),
            (data, ImageMediaIO(rgba_background_color=(0, 0, 0))),
        )
    ]
    assert len(set(keys)) == 4
    assert keys[0] == content_key(PictureFile(data, ImageMediaIO()))


def test_a_file_is_turned_upright_as_vllm_turns_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = file_of(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    assert size_of(sideways) == as_pil(sideways).size == (20, 40)


def test_transparency_falls_on_the_readers_background() -> None:
    data = BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(data, "PNG")
    found = PictureFile(data.getvalue(), ImageMediaIO(rgba_background_color=(0, 0, 9))).decoded()
    assert found.getpixel((0, 0)) == (0, 0, 9)
