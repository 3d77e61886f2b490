import numpy as np
import pytest
from PIL import Image

from evals.conditions import CONDITIONS, Change, apply


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    return rough.resize((160, 120), Image.Resampling.BICUBIC)


def difference(a: Image.Image, b: Image.Image) -> float:
    b = b.resize(a.size, Image.Resampling.BICUBIC)
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


def every_change() -> list[Change]:
    return [Change(name, amount) for name, amounts in CONDITIONS.items() for amount in amounts]


@pytest.mark.parametrize("change", every_change(), ids=str)
def test_the_same_seed_gives_the_same_picture(change: Change, photo: Image.Image) -> None:
    once, again = apply(change, photo, "7/a/0"), apply(change, photo, "7/a/0")
    assert once.tobytes() == again.tobytes()
    assert once.mode == "RGB"
    assert difference(photo, once) > 0


@pytest.mark.parametrize("name", ["noise", "darkness", "glare", "rotation", "aspect"])
def test_other_pictures_get_other_accidents(name: str, photo: Image.Image) -> None:
    change = Change(name, CONDITIONS[name][1])
    assert len({apply(change, photo, f"7/{item}/0").tobytes() for item in range(8)}) > 1


@pytest.mark.parametrize("name", ["noise", "blur", "darkness", "glare", "jpeg", "resolution"])
def test_amounts_go_from_mild_to_severe(name: str, photo: Image.Image) -> None:
    harm = [difference(photo, apply(Change(name, amount), photo, "0")) for amount in CONDITIONS[name]]
    assert harm == sorted(harm)


def test_sizes_and_shapes(photo: Image.Image) -> None:
    assert apply(Change("resolution", 0.25), photo, "0").size == (40, 30)
    assert apply(Change("aspect", 3), photo, "0").size in {(480, 120), (160, 360)}
    turned = apply(Change("rotation", 20), photo, "0")
    assert turned.width > 160
    assert turned.height > 120


@pytest.mark.parametrize(("factor", "size"), [(1, (448, 336)), (2, (224, 168)), (3, (149, 112)), (12, (37, 28))])
def test_downscaled_pictures_have_as_many_pixels_as_are_left_patches(factor: int, size: tuple[int, int]) -> None:
    assert apply(Change("downscale", factor), Image.new("RGB", (1600, 1200)), "0").size == size


def test_downscaling_never_enlarges(photo: Image.Image) -> None:
    assert apply(Change("downscale", 2), photo, "0").size == (160, 120)


def test_tiny_and_odd_pictures_survive_everything() -> None:
    for change in every_change():
        assert min(apply(change, Image.new("RGB", (3, 1), (9, 9, 9)), "0").size) >= 1


def test_names() -> None:
    assert Change.parse("jpeg:15") == Change("jpeg", 15)
    assert str(Change("resolution", 0.25)) == "resolution:0.25"
    with pytest.raises(ValueError, match="unknown condition"):
        Change.parse("fog:1")
