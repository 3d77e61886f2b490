"""Metrics by name: ours, and those that other installed packages offer as entry points of the group `dfmr.metrics`.

In such a package's pyproject.toml:

    [project.entry-points."dfmr.metrics"]
    my-metric = "my_package.my_module:my_metric"
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
from torch import Tensor

from dfmr_kernels.decide import grid_after
from dfmr_kernels.metrics.base import Metric, MetricInput
from dfmr_kernels.metrics.features import cosine, spectral, std, std_normalised
from dfmr_kernels.metrics.pixels import entropy, gradient
from dfmr_kernels.reference import Pyramid, pyramid

GROUP = "dfmr.metrics"
METRICS: dict[str, Metric] = {
    "std": std,
    "std-normalised": std_normalised,
    "cosine": cosine,
    "spectral": spectral,
    "gradient": gradient,
    "entropy": entropy,
}


def metric_names() -> tuple[str, ...]:
    """Every name that may be asked for, ours first. Those of other packages are not loaded by this."""
    return (*METRICS, *sorted({point.name for point in entry_points(group=GROUP)} - METRICS.keys()))


@cache
def metric_by_name(name: str) -> Metric:
    """The metric called `name`. One of another package is loaded by its first use, and tried on a small picture.

    Raises:
        ValueError: there is none of that name, or more than one, or it cannot be loaded, or does not do what `Metric`
            says; the message says which.
    """
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if name in METRICS:
        if points:
            raise ValueError(f"metric {name!r} is ours, and {points[0].value} may not take its name")
        return METRICS[name]
    if not points:
        raise ValueError(f"unknown metric {name!r}, choose one of {', '.join(metric_names())}")
    if len({point.value for point in points}) > 1:
        raise ValueError(f"metric {name!r} is offered by {' and by '.join(point.value for point in points)}")
    return _loaded(points[0])


def window_maps(name: str, features: Tensor, measured: Pyramid, pixels: Tensor | None = None) -> dict[int, Tensor]:
    """What the metric called `name` finds in every window of a batch, at every candidate factor.

    Args:
        features: (B, H, W, D) batch, rows, columns, channels, of which `measured` is the pyramid.
        measured: has the candidates as its keys.
        pixels: (B, 3, h, w) uint8 RGB on the features' device, as in `MetricInput`; None where there are none.

    Returns:
        s -> (B, ceil(H/s), ceil(W/s)) float32 in the candidates' order and on the features' device. All zero at s = 1,
        where nothing is averaged.

    Raises:
        ValueError: an unknown metric, one that needs pixels where there are none, or one that breaks its contract.
    """
    metric = metric_by_name(name)
    if metric is std:
        return measured.sigmas
    factors = tuple(s for s in measured.sigmas if s > 1)
    maps = {s: torch.zeros_like(sigma) for s, sigma in measured.sigmas.items()}
    for index, picture in enumerate(features):
        given = MetricInput(
            picture,
            factors,
            {s: measured.sigmas[s][index] for s in factors},
            {s: measured.maps[s][index] for s in factors},
            None if pixels is None else pixels[index],
        )
        found = metric(given)
        _check(name, found, given)
        for s in factors:
            maps[s][index] = found[s]
    return maps


def _loaded(point: EntryPoint) -> Metric:
    metric: Metric
    try:
        metric = point.load()
    except Exception as error:
        raise ValueError(f"metric {point.name!r} ({point.value}) cannot be loaded: {_said(error)}") from error
    if not callable(metric):
        raise ValueError(f"metric {point.name!r} ({point.value}) must be callable, it is {metric!r}")
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 5, 7, 8, generator=generator)
    pixels = torch.randint(0, 256, (3, 20, 28), dtype=torch.uint8, generator=generator)
    measured = pyramid(features, (2, 3))
    sigmas = {s: sigma[0] for s, sigma in measured.sigmas.items()}
    maps = {s: pooled[0] for s, pooled in measured.maps.items()}
    trial = MetricInput(features[0], (2, 3), sigmas, maps, pixels)
    try:
        found = metric(trial)
    except Exception as error:
        raise ValueError(f"metric {point.name!r} ({point.value}) failed on a trial: {_said(error)}") from error
    _check(point.name, found, trial)
    if not all(bool((found[s].isfinite() & (found[s] >= 0)).all()) for s in trial.factors):
        raise ValueError(f"metric {point.name!r} must give finite numbers from 0 up, on a trial it did not")
    return metric


def _check(name: str, found: Any, given: MetricInput) -> None:
    if not isinstance(found, Mapping) or not set(given.factors) <= found.keys():
        what = sorted(found) if isinstance(found, Mapping) else found
        raise ValueError(f"metric {name!r} must map each of the factors {given.factors} to a tensor, it gave {what!r}")
    for s in given.factors:
        window_map = found[s]
        grid = grid_after((given.features.shape[0], given.features.shape[1]), s)
        if not isinstance(window_map, Tensor) or window_map.shape != grid or window_map.dtype != torch.float32:
            dtype, shape = getattr(window_map, "dtype", type(window_map)), tuple(getattr(window_map, "shape", ()))
            raise ValueError(
                f"metric {name!r} must give a float32 {grid} map at factor {s} for a map of "
                f"{tuple(given.features.shape)}, it gave {dtype} {shape}"
            )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
