import metric_oracle
import pytest
import torch
from comparing import FACTORS, features
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfmr_kernels import measure, reduce

ORACLES = {"gradient": metric_oracle.gradient, "entropy": metric_oracle.entropy}
every_metric = pytest.mark.parametrize("name", sorted(ORACLES))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def maps(name: str, pixels: Tensor, grid: tuple[int, int], *factors: int) -> dict[int, Tensor]:
    return measure(features(len(pixels), *grid, 2), (1, *factors), name, pixels).sigmas


def assert_is_the_oracles(name: str, pixels: Tensor, grid: tuple[int, int], factors: tuple[int, ...]) -> None:
    measured = maps(name, pixels, grid, *factors)
    for s in factors:
        for index, picture in enumerate(pixels.numpy()):
            expected = torch.from_numpy(ORACLES[name](picture, grid, s))
            torch.testing.assert_close(measured[s][index].double(), expected, rtol=1e-5, atol=1e-6)
            assert measured[s].dtype == torch.float32


@every_metric
def test_window_maps_are_the_oracles(name: str) -> None:
    assert_is_the_oracles(name, noise(2, 3, 84, 84), (6, 6), (2, 3, 4, 6))


@every_metric
def test_windows_cut_off_at_the_edge_and_pixels_that_no_token_saw(name: str) -> None:
    pixels = noise(1, 3, 27 * 3 + 2, 27 * 3 + 1)  # as SigLIP's 384 = 27 * 14 + 6
    assert_is_the_oracles(name, pixels, (27, 27), (2,))
    other = pixels.clone()
    other[..., 81:, :] = 0
    other[..., 81:] = 0
    assert torch.equal(maps(name, other, (27, 27), 2)[2], maps(name, pixels, (27, 27), 2)[2])


@every_metric
@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 5), width=st.integers(1, 5), rows=st.integers(1, 6), columns=st.integers(1, 6),
    s=st.integers(2, 6), seed=st.integers(0, 999),
)  # fmt: skip
def test_any_small_picture_is_the_oracles(
    name: str, height: int, width: int, rows: int, columns: int, s: int, seed: int
) -> None:
    assert_is_the_oracles(name, noise(1, 3, height * rows, width * columns, seed=seed), (height, width), (s,))


@every_metric
def test_a_flat_picture_hides_nothing(name: str) -> None:
    pixels = torch.tensor([200, 30, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 56, 56)
    for window_map in maps(name, pixels, (4, 4), 2, 3, 4).values():
        assert not window_map.any()


@every_metric
def test_a_picture_is_measured_alike_in_any_batch(name: str) -> None:
    pixels = noise(4, 3, 336, 336)
    together = maps(name, pixels, (24, 24), *FACTORS[1:])
    for index in range(4):
        alone = maps(name, pixels[index : index + 1], (24, 24), *FACTORS[1:])
        assert all(torch.equal(together[s][index], alone[s][0]) for s in FACTORS)


@every_metric
def test_mirroring_and_quarter_turns_turn_the_map(name: str) -> None:
    pixels = noise(1, 3, 32, 32)
    upright = maps(name, pixels, (4, 4), 2)[2]
    for turned, expected in [(pixels.flip(-1), upright.flip(-1)), (pixels.rot90(1, (2, 3)), upright.rot90(1, (1, 2)))]:
        torch.testing.assert_close(maps(name, turned, (4, 4), 2)[2], expected, rtol=1e-5, atol=1e-6)


def test_brightness_does_not_matter_to_gradients_and_contrast_scales_them() -> None:
    dark = noise(1, 1, 28, 28).div(4, rounding_mode="floor").expand(1, 3, 28, 28)
    once = maps("gradient", dark, (2, 2), 2)[2]
    torch.testing.assert_close(maps("gradient", dark + 100, (2, 2), 2)[2], once, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps("gradient", dark * 4, (2, 2), 2)[2], 4 * once, rtol=1e-5, atol=1e-6)


def test_a_larger_window_holds_coarser_gradients() -> None:
    stripes = ((torch.arange(64) // 16 % 2) * 255).to(torch.uint8).expand(1, 3, 64, 64)
    found = maps("gradient", stripes, (8, 8), 2, 4)
    assert found[4].mean() > 1.1 * found[2].mean()


def test_entropies_worked_by_hand() -> None:
    halves = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    halves[..., 4:] = 255
    assert maps("entropy", halves, (2, 2), 2)[2].item() == 1.0
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert maps("entropy", ramp, (4, 4), 4)[4].item() == pytest.approx(5.0)


@every_metric
def test_missing_or_wrong_pixels_are_refused(name: str) -> None:
    batch = features(2, 4, 4, 2)
    rows = [[0.0, 0.0]] * 2
    with pytest.raises(ValueError, match="looks at pixels, and none were passed"):
        reduce(batch, (1, 2), rows, metric=name)
    with pytest.raises(ValueError, match=r"uint8 \(2, 3, rows, columns\), got torch.float32 \(2, 3, 8, 8\)"):
        reduce(batch, (1, 2), rows, metric=name, pixels=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got torch.uint8 \(1, 3, 8, 8\)"):
        reduce(batch, (1, 2), rows, metric=name, pixels=noise(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"\(3, 8\) pixels cannot have made a map of \(4, 4\) tokens"):
        reduce(batch, (1, 2), rows, metric=name, pixels=noise(2, 3, 3, 8))
