"""`Preprocessor` makes the bytes that Hugging Face's image processors make, for every size and mode."""

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from server.encoding import preprocess
from server.encoding.preprocess import Preprocessor

RAW = {"do_rescale": False, "do_normalize": False}
SQUARE = {"height": 336, "width": 336}


def clip(**changes: Any) -> CLIPImageProcessorPil:
    """LLaVA-1.5's processor, up to uint8."""
    return CLIPImageProcessorPil(**{"size": {"shortest_edge": 336}, "crop_size": SQUARE, **RAW, **changes})


def siglip(**changes: Any) -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(**{"size": {"height": 384, "width": 384}, **RAW, **changes})


def llava(**changes: Any) -> LlavaImageProcessorPil:
    return LlavaImageProcessorPil(
        **{"size": {"shortest_edge": 336}, "crop_size": SQUARE, "do_pad": True, **RAW, **changes}
    )


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 10_007 + height)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode not in ("RGBA", "LA", "PA"):
        picture = picture.convert("RGB")
    return (picture.convert("LA") if mode == "PA" else picture).convert(mode)


def by_hugging_face(processor: Any, picture: Image.Image) -> NDArray[np.uint8]:
    made = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
    assert made.dtype == np.uint8
    return made


def assert_same(processor: Any, picture: Image.Image) -> None:
    np.testing.assert_array_equal(Preprocessor.from_processor(processor)(picture), by_hugging_face(processor, picture))


SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (2, 3),
    (5, 5),
    (13, 29),
    (37, 1000),
    (1000, 37),
    (64, 64),
    (80, 100),
    (97, 31),
    (299, 301),
    (335, 337),
    (336, 336),
    (336, 500),
    (337, 336),
    (337, 1000),
    (640, 480),
    (480, 640),
    (671, 673),
    (800, 200),
    (1024, 768),
    (1999, 1503),
]
by_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


@by_size
def test_clip_resizes_by_the_short_side_and_crops_the_centre(size: tuple[int, int]) -> None:
    assert_same(clip(), noise(*size))


@by_size
def test_siglip_resizes_both_sides(size: tuple[int, int]) -> None:
    assert_same(siglip(), noise(*size))


@by_size
def test_llava_pads_to_a_square_with_the_mean_colour(size: tuple[int, int]) -> None:
    processor = llava()
    normalising = llava(do_normalize=True)
    np.testing.assert_array_equal(
        Preprocessor.from_processor(normalising)(noise(*size)), by_hugging_face(processor, noise(*size))
    )


def test_the_padding_colour_is_the_mean_even_where_nothing_is_normalised() -> None:
    assert_same(llava(do_normalize=False), noise(90, 40))


@by_size
def test_a_picture_smaller_than_the_crop_gets_a_black_border(size: tuple[int, int]) -> None:
    assert_same(clip(size={"shortest_edge": 55}, crop_size={"height": 84, "width": 97}), noise(*size))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
@pytest.mark.parametrize("processor", [clip, siglip])
def test_every_mode_becomes_rgb_as_in_hugging_face(mode: str, processor: Callable[[], Any]) -> None:
    picture = noise(70, 51, mode)
    assert picture.mode == mode
    assert_same(processor(), picture)


@pytest.mark.parametrize("resample", list(Image.Resampling), ids=lambda r: r.name.lower())
def test_the_checkpoints_resampling_filter_is_used(resample: Image.Resampling) -> None:
    assert_same(clip(resample=resample), noise(100, 61))


UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_turned_upright_by_its_exif_orientation(orientation: int) -> None:
    from vllm.multimodal.media.image import ImageMediaIO

    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    noise(61, 40).save(file, "JPEG", exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    upright = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](stored)))

    loaded = ImageMediaIO().load_bytes(file.getvalue()).media

    np.testing.assert_array_equal(Preprocessor.from_processor(clip())(loaded), by_hugging_face(clip(), upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_of_any_mode_passes_vllms_loader(mode: str) -> None:
    from vllm.multimodal.media.image import ImageMediaIO

    file = io.BytesIO()
    noise(33, 50, mode).save(file, "PNG")
    assert_same(clip(), ImageMediaIO().load_bytes(file.getvalue()).media)


@pytest.mark.parametrize(("width", "height"), [(1, 5000), (5000, 1), (2, 3000), (3, 5001)])
def test_a_very_long_picture_equals_hugging_faces_result_for_its_middle(width: int, height: int) -> None:
    """Hugging Face's own way through 1x5000 takes 6 GB. Where the scale is a whole number, a pixel of the result
    depends on its neighbourhood alone, so that a shorter picture around the same centre has the same crop."""
    picture = noise(width, height)
    left, top = max(0, width // 2 - 20), max(0, height // 2 - 20)
    middle = picture.crop((left, top, width - left, height - top))
    assert max(middle.size) <= 41

    np.testing.assert_array_equal(Preprocessor.from_processor(clip())(picture), by_hugging_face(clip(), middle))


def test_the_first_picture_over_the_intermediate_bound_equals_hugging_face() -> None:
    length = preprocess._MAX_INTERMEDIATE_PIXELS // 336**2 + 1
    assert_same(clip(), noise(1, length))


def test_a_line_that_padding_would_make_a_huge_square_takes_little_memory() -> None:
    """In a process that may take 400 MB more than it has; a square of its length would have 14 GB."""
    program = """
import resource
from PIL import Image
from server.encoding.preprocess import Preprocessor
preprocess = Preprocessor(336, 336, 336, Image.Resampling.BICUBIC, (1, 2, 3), 1 / 255, (0, 0, 0), (1, 1, 1))
preprocess(Image.new("RGB", (8, 8)))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
picture = Image.new("L", (1, 60_000), 77)
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
made = preprocess(picture)
assert made.shape == (3, 336, 336) and (made[:, :, 0] == [[1], [2], [3]]).all()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_large_picture_that_is_scaled_before_it_is_padded_is_off_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "_MAX_PADDED_SIDE", 672)
    picture = noise(1344, 900).resize((1344, 900))
    smooth = picture.resize((84, 56)).resize((1344, 900))
    ours = Preprocessor.from_processor(llava())(smooth)
    difference = np.abs(ours.astype(int) - by_hugging_face(llava(), smooth))
    assert difference.mean() < 1


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (2, 50), (3, 40), (7, 90), (84, 12), (333, 4), (112, 168)])
def test_cropping_before_scaling_is_exact_at_whole_scales(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_MAX_INTERMEDIATE_PIXELS", 0)
    assert_same(clip(), noise(*size))


@pytest.mark.parametrize("size", [(5, 61), (13, 29), (97, 31), (333, 5), (337, 1000), (1000, 337), (640, 480)])
def test_cropping_before_scaling_is_off_by_rounding_at_other_scales(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_MAX_INTERMEDIATE_PIXELS", 0)
    ours = Preprocessor.from_processor(clip())(noise(*size))
    difference = np.abs(ours.astype(int) - by_hugging_face(clip(), noise(*size)))
    assert difference.max() <= 3
    assert difference.mean() < 0.05


def test_a_picture_ten_million_pixels_long_takes_little_memory() -> None:
    """In a process that may take 400 MB more than it has; the scaled picture would have a terabyte."""
    program = """
import resource
from PIL import Image
from server.encoding.preprocess import Preprocessor
preprocess = Preprocessor(336, 336, 336, Image.Resampling.BICUBIC, None, 1 / 255, (0, 0, 0), (1, 1, 1))
preprocess(Image.new("RGB", (8, 8)))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
picture = Image.new("L", (1, 10_000_000), 77)
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
made = preprocess(picture)
assert made.shape == (3, 336, 336) and (made == 77).all()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_result_is_contiguous_channels_first() -> None:
    made = Preprocessor.from_processor(siglip(size={"height": 56, "width": 84}))(noise(30, 20))
    assert made.shape == (3, 56, 84)
    assert made.dtype == np.uint8
    assert made.flags.c_contiguous


def test_normalisation_is_left_to_the_device_with_the_checkpoints_numbers() -> None:
    processor = clip(do_rescale=True, do_normalize=True)
    ours = Preprocessor.from_processor(processor)
    picture = noise(100, 61)

    mean, std = np.array(ours.mean)[:, None, None], np.array(ours.std)[:, None, None]
    normalised = (ours(picture) * ours.scale - mean) / std

    theirs = processor(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(normalised, theirs, atol=1e-5)


def test_a_processor_that_neither_rescales_nor_normalises_leaves_the_device_nothing_to_do() -> None:
    ours = Preprocessor.from_processor(clip())
    assert (ours.scale, ours.mean, ours.std) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (clip(do_resize=False), "do not resize"),
        (clip(do_center_crop=False), "must crop"),
        (clip(size={"max_height": 56, "max_width": 84}), "max_height"),
        (siglip(size={"max_height": 56, "max_width": 84}), "need shortest_edge or height and width"),
        (clip(image_mean=0.5, do_normalize=True), "one number per channel"),
    ],
)
def test_a_processor_that_works_otherwise_is_refused(processor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessor.from_processor(processor)


@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(clip(size={"height": 384, "width": 384}), id="resize-both-sides-then-crop"),
        pytest.param(clip(size={"shortest_edge": 336, "longest_edge": 400}), id="bounded-long-side"),
        pytest.param(clip(do_pad=True), id="padding-that-is-not-llavas"),
    ],
)
def test_a_processor_is_reproduced_or_refused_but_never_replaced_by_another(processor: Any) -> None:
    try:
        ours = Preprocessor.from_processor(processor)
    except ValueError:
        return
    np.testing.assert_array_equal(ours(noise(500, 100)), by_hugging_face(processor, noise(500, 100)))


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (300, 40), (41, 97)])
@pytest.mark.parametrize("way", ["crop", "stretch", "pad"])
def test_a_box_lies_in_the_input_where_what_it_holds_does(size: tuple[int, int], way: str) -> None:
    """A white box on black, wherever the picture goes, is where `place` says, to a pixel of rounding."""
    side = 96
    preprocessor = Preprocessor(
        side, side, side if way != "stretch" else None, Image.Resampling.NEAREST,
        (0, 0, 0) if way == "pad" else None, 1 / 255, (0.0,) * 3, (1.0,) * 3,
    )  # fmt: skip
    width, height = size
    left, top, right, bottom = width // 4, height // 3, width // 4 + width // 2, height // 3 + height // 4
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (left, top, right, bottom))
    box = (left / width, top / height, right / width, bottom / height)
    white = preprocessor(picture)[0] > 127
    expected = np.zeros((side, side), bool)
    x0, y0, x1, y1 = (min(max(round(share * side), 0), side) for share in preprocessor.place(box, size))
    expected[y0:y1, x0:x1] = True
    inner = np.zeros_like(expected)
    inner[y0 + 1 : max(y1 - 1, 0), x0 + 1 : max(x1 - 1, 0)] = True
    outer = np.zeros_like(expected)
    outer[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
    assert white.any() == expected.any()
    assert white[inner].all()
    assert not white[~outer].any()
