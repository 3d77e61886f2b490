import oracle
import pytest
import torch
from comparing import DTYPES, FACTORS, assert_matches_oracle, assert_same_bits, features
from hypothesis import given, settings
from hypothesis import strategies as st

from dfmr_kernels.reference import Pyramid, pyramid

SHAPES = [(2, 24, 24, 16), (1, 27, 27, 9), (2, 5, 7, 33), (3, 1, 1, 1), (1, 1, 13, 3), (1, 13, 1, 3)]
sizes = st.integers(1, 9)


def pick(measured: Pyramid, index: int) -> Pyramid:
    """The pyramid of one picture of a batch, as a batch of one."""
    only = slice(index, index + 1)
    maps = {s: pooled[only] for s, pooled in measured.maps.items()}
    return Pyramid({s: sigma[only] for s, sigma in measured.sigmas.items()}, maps, measured.finite[only])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pooled_and_sigma_maps_are_the_oracles(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch = features(*shape, dtype=dtype)
    assert_matches_oracle(pyramid(batch, FACTORS), batch)


@settings(max_examples=40, deadline=None)
@given(height=sizes, width=sizes, channels=sizes, s=st.integers(1, 11), seed=st.integers(0, 2**31))
def test_any_small_map_at_any_factor_is_the_oracles(height: int, width: int, channels: int, s: int, seed: int) -> None:
    batch = features(1, height, width, channels, seed=seed)
    assert_matches_oracle(pyramid(batch, [s]), batch)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_sigma_scales_with_the_features(scale: float, seed: int) -> None:
    batch = features(1, 6, 7, 5, seed=seed)
    once, scaled = pyramid(batch, [3]).sigmas[3], pyramid(batch * scale, [3]).sigmas[3]
    torch.testing.assert_close(scaled, once * scale, rtol=1e-4, atol=1e-6 * scale)


def test_shapes_and_dtypes_are_the_documented_ones() -> None:
    measured = pyramid(features(2, 5, 7, 3, dtype=torch.bfloat16), (1, 3))
    assert measured.maps[3].shape == (2, 2, 3, 3)
    assert measured.sigmas[3].shape == (2, 2, 3)
    assert measured.maps[3].dtype == torch.bfloat16
    assert measured.sigmas[3].dtype == torch.float32
    assert measured.finite.shape == (2,)
    assert measured.finite.dtype == torch.bool


def test_factor_one_is_the_map_itself_and_hides_nothing() -> None:
    batch = features(2, 4, 6, 3)
    measured = pyramid(batch, [1])
    assert torch.equal(measured.maps[1], batch)
    assert not measured.sigmas[1].any()


@pytest.mark.parametrize("value", [0.0, 0.1, 100.0, 1e4, -1e4, 1e30])
def test_a_flat_picture_has_no_spread_whatever_its_offset(value: float) -> None:
    batch = torch.full((1, 24, 24, 8), value)
    measured = pyramid(batch, FACTORS)
    for s in FACTORS:
        assert not measured.sigmas[s].any()
        assert torch.equal(measured.maps[s], torch.full_like(measured.maps[s], value))


def test_a_large_offset_leaves_the_spread_as_it_was() -> None:
    batch = torch.round(features(1, 12, 12, 8) * 64) / 64  # exact after adding the offset
    plain, shifted = pyramid(batch, FACTORS), pyramid(batch + 8192.0, FACTORS)
    for s in FACTORS:
        torch.testing.assert_close(shifted.sigmas[s], plain.sigmas[s], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", [(0, 0), (7, 5)])
def test_an_outlier_token_leaves_other_windows_accurate(at: tuple[int, int]) -> None:
    batch = features(1, 12, 12, 8)
    batch[0, at[0], at[1]] = 1000.0
    expected = torch.from_numpy(oracle.window_sigma(batch[0].double().numpy(), 4))
    torch.testing.assert_close(pyramid(batch, [4]).sigmas[4][0].double(), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_marks_its_picture_alone(bad: float) -> None:
    batch = features(3, 6, 6, 4)
    clean = pyramid(batch, FACTORS)
    batch[1, 5, 5, 3] = bad
    measured = pyramid(batch, FACTORS)
    assert measured.finite.tolist() == [True, False, True]
    for index in (0, 2):
        assert_same_bits(pick(measured, index), pick(clean, index))


def test_the_largest_finite_values_are_finite() -> None:
    assert pyramid(torch.full((1, 2, 2, 3), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16), [1, 2]).finite.all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_picture_comes_out_the_same_in_any_batch(dtype: torch.dtype) -> None:
    batch = features(5, 24, 24, 64, dtype=dtype)
    together = pyramid(batch, FACTORS)
    for index in range(len(batch)):
        assert_same_bits(pick(together, index), pyramid(batch[index : index + 1], FACTORS))


def test_an_empty_batch_keeps_its_shapes() -> None:
    measured = pyramid(features(0, 5, 7, 3), (1, 2))
    assert measured.maps[2].shape == (0, 3, 4, 3)
    assert measured.sigmas[2].shape == (0, 3, 4)
    assert measured.finite.shape == (0,)


def test_a_map_without_its_class_token_need_not_be_copied_first() -> None:
    tokens = features(2, 1, 37, 8)[:, 0, 1:]
    batch = tokens.unflatten(1, (6, 6))
    assert not batch.is_contiguous()
    assert_same_bits(pyramid(batch, FACTORS), pyramid(batch.contiguous(), FACTORS))
