"""What the tests of the compressor share: feature maps, and the comparison of a pyramid with the oracle."""

import oracle
import torch
from torch import Tensor

from dfmr_kernels import Pyramid

FACTORS = (1, 2, 3, 4, 6, 8, 12)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Half a unit in the last place, relative to the value: what rounding a window's mean to the dtype may cost.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Of the largest magnitude: what summing in float32 may cost.
SUMMING = 1e-6


def features(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal (B, H, W, D) features, each channel with an offset and a scale of its own, as encoders have them."""
    generator = torch.Generator().manual_seed(seed)
    scale, offset = torch.rand(2, shape[-1], generator=generator)
    return (torch.randn(*shape, generator=generator) * (scale + 0.1) + 4 * offset - 2).to(dtype)


def assert_matches_oracle(measured: Pyramid, batch: Tensor, roundings: float = 1) -> None:
    """Every map and sigma map must be the oracle's, up to float32 sums and `roundings` half units of the dtype."""
    for index, picture in enumerate(batch.double().cpu().numpy()):
        assert bool(measured.finite[index]) == oracle.is_finite(picture)
        slack = SUMMING * abs(picture).max()
        for s, pooled in measured.maps.items():
            expected = torch.from_numpy(oracle.window_mean(picture, s))
            rounding = roundings * ROUNDING[batch.dtype]
            torch.testing.assert_close(pooled[index].double().cpu(), expected, rtol=rounding, atol=slack)
        for s, sigma in measured.sigmas.items():
            expected = torch.from_numpy(oracle.window_sigma(picture, s))
            torch.testing.assert_close(sigma[index].double().cpu(), expected, rtol=1e-5, atol=slack)


def assert_same_bits(one: Pyramid, other: Pyramid) -> None:
    """Two pyramids of finite pictures must be equal to the bit."""
    assert torch.equal(one.finite, other.finite)
    for s in one.maps:
        assert torch.equal(one.maps[s], other.maps[s])
        assert torch.equal(one.sigmas[s], other.sigmas[s])
