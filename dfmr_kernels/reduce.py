"""The public entry: feature maps in, as many visual tokens out as each picture is worth."""

from collections.abc import Sequence
from math import isnan, nan
from typing import NamedTuple

import torch
from torch import Tensor

from dfmr_kernels import reference
from dfmr_kernels.choices import Choice
from dfmr_kernels.decide import Grid, check_candidates, grid_after
from dfmr_kernels.metrics import metric_by_name, window_maps
from dfmr_kernels.reference import Pyramid
from dfmr_kernels.select import select

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Reduction(NamedTuple):
    """A batch after reduction; per-picture fields follow the batch's order.

    Attributes:
        features: (total_tokens, D) the chosen pooled maps, picture after picture, each in row-major window order;
            dtype and device of the input.
        grids: (rows, columns) of each picture's kept tokens; (0, 0) where it is not finite.
        factors: the pooling factor chosen for each picture; 0 where it is not finite.
        scores: (B, F) float32 on the CPU, one for each candidate in the candidates' order, in the unit of the
            metric; NaN where the picture is not finite.
        finite: whether every element of the picture is finite, and what the metric made of every window. A picture that
            is not contributes no tokens.
    """

    features: Tensor
    grids: list[Grid]
    factors: list[int]
    scores: Tensor
    finite: list[bool]


@torch.no_grad()
def pyramid(features: Tensor, candidates: Sequence[int]) -> Pyramid:
    """Pooled maps and sigma maps of a batch at every candidate factor, by the backend of its device.

    CUDA tensors go through the fused Triton kernel, all others through the PyTorch reference. Nothing waits for the
    device, and no gradient flows through.

    Args:
        features: (B, H, W, D) batch, rows, columns, channels; float32, bfloat16 or float16; B may be 0.
        candidates: distinct pooling factors with 1 among them, in any order.

    Raises:
        ValueError: wrong rank, an empty axis, another dtype, or bad candidates.
    """
    _check_features(features)
    check_candidates(candidates)
    if features.is_cuda:
        from dfmr_kernels import triton_kernels  # triton is absent from CPU-only installations

        return triton_kernels.pyramid(features, candidates)
    return reference.pyramid(features, candidates)


@torch.no_grad()
def measure(features: Tensor, candidates: Sequence[int], metric: str = "std", pixels: Tensor | None = None) -> Pyramid:
    """`pyramid` with the window maps of another metric in place of its sigma maps.

    Args:
        features: (B, H, W, D) as in `pyramid`.
        candidates: distinct pooling factors with 1 among them, in any order.
        metric: what is measured inside each window, by its name in `metrics.METRICS` or as an entry point.
        pixels: (B, 3, h, w) uint8 RGB that the encoder was given, before normalisation, on the features' device; needed
            by metrics that look at pixels.

    Raises:
        ValueError: as `pyramid`; and an unknown metric, or pixels that are missing or of another shape or type.
    """
    metric_by_name(metric)
    _check_features(features)
    if pixels is not None and (pixels.dtype != torch.uint8 or pixels.shape[:2] != (len(features), 3)):
        raise ValueError(
            f"pixels must be uint8 ({len(features)}, 3, rows, columns), got {pixels.dtype} {tuple(pixels.shape)}"
        )
    measured = pyramid(features, candidates)
    return measured._replace(sigmas=window_maps(metric, features, measured, pixels))


def reduce(
    features: Tensor,
    candidates: Sequence[int],
    thresholds: Sequence[Sequence[float]],
    aggregate: str = "mean",
    metric: str = "std",
    pixels: Tensor | None = None,
) -> Reduction:
    """Pool every picture by the largest factor whose score stays below its threshold.

    A picture's decision and values do not depend, to the bit, on the others in its batch. On CUDA the host waits for
    the device once per call.

    Args:
        features: (B, H, W, D) batch, rows, columns, channels; float32, bfloat16 or float16; B may be 0.
        candidates: distinct pooling factors with 1 among them, in any order.
        thresholds: B rows of one threshold per candidate, as `decide.thresholds` builds them.
        aggregate: how a window map becomes a score, by its name in `scores.AGGREGATES`.
        metric: what is measured inside each window, as in `measure`.
        pixels: as in `measure`.

    Raises:
        ValueError: wrong rank, an empty axis, another dtype, bad candidates, thresholds that do not match or are NaN,
            an unknown aggregate or metric, or missing or wrong pixels for it.
    """
    _check_features(features)
    _check_thresholds(thresholds, len(features), len(candidates))
    choices = [Choice(tuple(row)) for row in thresholds]
    measured = measure(features, candidates, metric, pixels)
    kept, pictures = select(measured, candidates, choices, [False] * len(choices), aggregate)
    factors = [0 if picture is None else picture.layouts[0].factors[0] for picture in pictures]
    _, height, width, _ = features.shape
    scores = [[nan] * len(candidates) if picture is None else picture.scores for picture in pictures]
    return Reduction(
        features=kept,
        grids=[grid_after((height, width), s) if s else (0, 0) for s in factors],
        factors=factors,
        scores=torch.tensor(scores).view(len(pictures), len(candidates)),
        finite=[picture is not None for picture in pictures],
    )


def _check_features(features: Tensor) -> None:
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise ValueError(f"features must be (batch, rows, columns, channels), got shape {tuple(features.shape)}")
    if features.dtype not in DTYPES:
        raise ValueError(f"features must be float32, bfloat16 or float16, got {features.dtype}")


def _check_thresholds(thresholds: Sequence[Sequence[float]], pictures: int, candidates: int) -> None:
    if len(thresholds) != pictures:
        raise ValueError(f"need one row of thresholds per picture: {pictures} pictures, {len(thresholds)} rows")
    for index, row in enumerate(thresholds):
        if len(row) != candidates:
            raise ValueError(f"thresholds of picture {index}: need {candidates}, one per candidate, got {len(row)}")
        if any(isnan(limit) for limit in row):
            raise ValueError(f"thresholds of picture {index} contain NaN")
