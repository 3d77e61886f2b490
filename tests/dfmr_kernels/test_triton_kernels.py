"""The fused kernels on a GPU where there is one, else on the CPU under Triton's interpreter."""

from collections import Counter

import pytest
import torch
from comparing import FACTORS, assert_matches_oracle, assert_same_bits, features

from dfmr_kernels import reference
from dfmr_kernels.reference import Pyramid
from dfmr_kernels.tiling import traffic

pytest.importorskip("triton")
from dfmr_kernels import triton_kernels

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # NumPy's, on NaN and overflow
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter cuts bfloat16 off where a GPU rounds it: a whole unit in the last place instead of half of one.
ROUNDINGS = 1 if ON_GPU else 2

CASES = [
    ((2, 5, 7, 33), FACTORS),
    ((1, 1, 1, 1), FACTORS),
    ((1, 1, 13, 3), FACTORS),
    ((1, 13, 2, 3), (1, 2, 4, 8)),
    ((1, 17, 11, 40), (1, 4, 8)),
    ((2, 9, 10, 5), (7, 1, 5, 2, 3)),
    ((1, 6, 6, 64), (1, 6)),
]


def fused(batch: torch.Tensor, candidates: tuple[int, ...]) -> Pyramid:
    return triton_kernels.pyramid(batch.to(DEVICE), candidates)


@pytest.mark.parametrize(("shape", "candidates"), CASES)
def test_pooled_and_sigma_maps_are_the_oracles(shape: tuple[int, ...], candidates: tuple[int, ...]) -> None:
    batch = features(*shape)
    measured = fused(batch, candidates)
    assert tuple(measured.maps) == tuple(measured.sigmas) == candidates
    assert_matches_oracle(measured, batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_full(dtype: torch.dtype) -> None:
    batch = features(1, 7, 9, 5, dtype=dtype)
    measured = fused(batch, (1, 2, 3, 6))
    assert measured.maps[3].dtype == dtype
    assert_matches_oracle(measured, batch, ROUNDINGS)


def test_windows_close_where_tiles_meet() -> None:
    batch = features(1, 13, 14, 2)
    assert_matches_oracle(fused(batch, (1, 3, 4, 6, 12)), batch)


def test_the_usual_map_and_factors_are_the_oracles() -> None:
    batch = features(1, 24, 24, 2)
    assert_matches_oracle(fused(batch, FACTORS), batch)


def test_factors_beyond_the_kernel_are_left_to_the_reference() -> None:
    batch = features(1, 4, 36, 3)
    assert_matches_oracle(fused(batch, (1, 4, 33)), batch)


@pytest.mark.parametrize("value", [0.1, 100.0, 1e4])
def test_a_flat_picture_has_no_spread_whatever_its_offset(value: float) -> None:
    measured = fused(torch.full((1, 6, 8, 4), value), (1, 2, 3))
    for s in (2, 3):
        assert measured.sigmas[s].max() <= 1e-6 * value
        torch.testing.assert_close(measured.maps[s].cpu(), torch.full_like(measured.maps[s], value).cpu())


def test_an_outlier_token_leaves_other_windows_accurate() -> None:
    batch = features(1, 6, 8, 8)
    batch[0, 0, 0] = 1000.0
    expected, measured = reference.pyramid(batch, (2, 3)), fused(batch, (2, 3))
    for s in (2, 3):
        torch.testing.assert_close(measured.sigmas[s].cpu(), expected.sigmas[s], rtol=1e-4, atol=0)


@pytest.mark.parametrize("at", [(0, 0, 0, 0), (0, 6, 7, 34)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_marks_its_picture_alone(bad: float, at: tuple[int, ...]) -> None:
    batch = features(2, 7, 8, 35)
    clean = fused(batch[1:], (1, 4))
    batch[at] = bad
    measured = fused(batch, (1, 4))
    assert measured.finite.tolist() == [False, True]
    assert torch.equal(measured.maps[4][1:], clean.maps[4])
    assert torch.equal(measured.sigmas[4][1:], clean.sigmas[4])


def test_the_largest_finite_values_are_finite() -> None:
    assert fused(torch.full((1, 2, 2, 3), torch.finfo(torch.float32).max), (1, 2)).finite.all()


def test_a_picture_comes_out_the_same_in_any_batch() -> None:
    batch = features(3, 5, 6, 33)
    together, last = fused(batch, (1, 2, 4)), fused(batch[2:], (1, 2, 4))
    for s in (1, 2, 4):
        assert torch.equal(together.maps[s][2:], last.maps[s])
        assert torch.equal(together.sigmas[s][2:], last.sigmas[s])


def test_an_empty_batch_keeps_its_shapes() -> None:
    measured = fused(features(0, 5, 7, 3), (1, 2))
    assert measured.maps[2].shape == (0, 3, 4, 3)
    assert measured.sigmas[2].shape == (0, 3, 4)
    assert measured.finite.shape == (0,)


def test_without_pooling_there_is_still_a_finite_flag() -> None:
    batch = features(2, 3, 3, 2)
    batch[0, 1, 1, 1] = float("inf")
    assert fused(batch, (1,)).finite.tolist() == [False, True]


def test_a_map_without_its_class_token_need_not_be_copied_first() -> None:
    batch = features(2, 1, 37, 8)[:, 0, 1:].unflatten(1, (6, 6))
    assert not batch.is_contiguous()
    assert_same_bits(fused(batch, (1, 2, 3)), fused(batch.contiguous(), (1, 2, 3)))


def test_columns_of_a_larger_map_are_taken_as_they_are() -> None:
    batch = features(1, 6, 9, 4)[:, :, 2:8]
    assert_same_bits(fused(batch, (1, 3)), fused(batch.contiguous(), (1, 3)))


@pytest.mark.skipif(ON_GPU, reason="counts the interpreter's loads")
@pytest.mark.parametrize(("grid", "candidates"), [((7, 10), (1, 2, 3)), ((5, 6), (1, *FACTORS[1:]))])
def test_each_element_is_loaded_once(
    grid: tuple[int, int], candidates: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    loads: Counter[int] = Counter()
    load = InterpreterBuilder.create_masked_load

    def counting_load(self, pointers, mask, *rest):  # type: ignore[no-untyped-def]
        loads.update(pointers.data[mask.data].ravel().tolist())
        return load(self, pointers, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counting_load)
    batch = features(1, *grid, 34)
    fused(batch, candidates)
    elements = range(batch.data_ptr(), batch.data_ptr() + batch.nbytes, batch.itemsize)
    assert {loads[element] for element in elements} == {1}
    assert len(elements) * batch.itemsize == traffic(grid, 34, batch.itemsize, candidates[1:]).map_read
