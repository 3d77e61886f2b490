"""The fused kernels on a real GPU: right, one wait per batch, and how fast beside torch.compile of the reference.

Run with `-s` to see the achieved bandwidth.
"""

from collections.abc import Callable
from statistics import median

import pytest
import torch
from comparing import DTYPES, FACTORS, assert_matches_oracle, assert_same_bits, features

from dfmr_kernels import pyramid, reduce, reference, thresholds
from dfmr_kernels.reference import Pyramid
from dfmr_kernels.tiling import traffic

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [(2, 24, 24, 1024), (2, 27, 27, 1152), (3, 5, 7, 33), (1, 1, 1, 1), (1, 37, 53, 200)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pooled_and_sigma_maps_are_the_oracles(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch = features(*shape, dtype=dtype)
    assert_matches_oracle(pyramid(batch.cuda(), FACTORS), batch)


def test_a_picture_comes_out_the_same_in_any_batch() -> None:
    batch = features(32, 24, 24, 1024, dtype=torch.bfloat16).cuda()
    together = pyramid(batch, FACTORS)
    for index in (0, 17, 31):
        one = slice(index, index + 1)
        maps = {s: pooled[one] for s, pooled in together.maps.items()}
        sigmas = {s: sigma[one] for s, sigma in together.sigmas.items()}
        assert_same_bits(Pyramid(sigmas, maps, together.finite[one]), pyramid(batch[one], FACTORS))


def test_decisions_are_those_of_the_cpu() -> None:
    batch = features(8, 24, 24, 1024)
    rows = [thresholds((24, 24), FACTORS, 0.6)] * 8
    on_gpu, on_cpu = reduce(batch.cuda(), FACTORS, rows), reduce(batch, FACTORS, rows)
    assert on_gpu.features.is_cuda
    assert on_gpu.factors == on_cpu.factors
    torch.testing.assert_close(on_gpu.scores, on_cpu.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(on_gpu.features.cpu(), on_cpu.features, rtol=1e-5, atol=1e-5)


def test_the_host_waits_for_the_device_once_per_batch() -> None:
    batch = features(4, 24, 24, 1024, dtype=torch.bfloat16).cuda()
    rows = [thresholds((24, 24), FACTORS, 0.6)] * 4
    reduce(batch, FACTORS, rows)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as waits:
            reduce(batch, FACTORS, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "synchronizing" in str(wait.message)]) == 1


@pytest.mark.parametrize("pictures", [1, 8, 32])
def test_achieved_bandwidth(pictures: int) -> None:
    batch = features(pictures, 24, 24, 1024, dtype=torch.bfloat16).cuda()
    compiled = torch.compile(reference.pyramid)  # picture by picture: it would unroll the loop over a batch
    floor = pictures * traffic((24, 24), 1024, 2, FACTORS[1:]).floor
    fused_ms = _median_ms(lambda: pyramid(batch, FACTORS))
    compiled_ms = _median_ms(lambda: [compiled(picture, FACTORS) for picture in batch.split(1)])
    print(
        f"\n{pictures} pictures of 24x24x1024 bfloat16: fused {fused_ms:.3f} ms, {floor / fused_ms / 1e6:.0f} GB/s; "
        f"torch.compile of the reference {compiled_ms:.3f} ms, {floor / compiled_ms / 1e6:.0f} GB/s"
    )


def _median_ms(work: Callable[[], object], runs: int = 50) -> float:
    """Median milliseconds of `work` on the device, from a cold L2 cache, launches included."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(runs + 5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return median(times[5:])
