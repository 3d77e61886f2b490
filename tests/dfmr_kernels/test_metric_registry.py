"""Metrics of other packages: found by entry point, loaded by name, tried before they are used."""

import sys
from math import inf, isnan, nan
from pathlib import Path

import pytest
import torch
from comparing import features

from dfmr_kernels import METRICS, measure, reduce
from dfmr_kernels.metrics import metric_by_name, metric_names

SOURCE = """
import torch
def range_of_means(picture):
    return {s: (m.float().amax(-1) - m.float().amin(-1)) for s, m in picture.maps.items()}
def of_wrong_shape(picture):
    return {s: sigma.flatten() for s, sigma in picture.sigmas.items()}
def of_wrong_dtype(picture):
    return {s: sigma.double() for s, sigma in picture.sigmas.items()}
def of_one_factor(picture):
    return {picture.factors[0]: picture.sigmas[picture.factors[0]]}
def of_nothing(picture):
    return None
def that_is_negative(picture):
    return {s: -1 - sigma for s, sigma in picture.sigmas.items()}
def that_raises(picture):
    raise RuntimeError("out of luck")
def that_overflows(picture):
    return {s: torch.where(picture.features.amax() > 50, torch.inf, 1.0) * sigma for s, sigma in picture.sigmas.items()}
NUMBER = 7
"""
POINTS = {
    "range-of-means": "elsewhere:range_of_means",
    "of-wrong-shape": "elsewhere:of_wrong_shape",
    "of-wrong-dtype": "elsewhere:of_wrong_dtype",
    "of-one-factor": "elsewhere:of_one_factor",
    "of-nothing": "elsewhere:of_nothing",
    "that-is-negative": "elsewhere:that_is_negative",
    "that-raises": "elsewhere:that_raises",
    "that-overflows": "elsewhere:that_overflows",
    "number": "elsewhere:NUMBER",
    "missing": "elsewhere:missing",
    "of-no-module": "nowhere_at_all:metric",
    "cosine": "elsewhere:range_of_means",
}


def install(folder: Path, package: str, points: dict[str, str]) -> None:
    """Lay a package's metadata where importlib finds it, as pip would."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (metadata / "entry_points.txt").write_text(f"[dfmr.metrics]\n{lines}\n")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package that offers metrics, good and bad."""
    (tmp_path / "elsewhere.py").write_text(SOURCE)
    install(tmp_path, "elsewhere", POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    metric_by_name.cache_clear()
    return tmp_path


def test_ours_are_known_without_any_package() -> None:
    assert list(METRICS) == ["std", "std-normalised", "cosine", "spectral", "gradient", "entropy"]
    assert metric_names()[: len(METRICS)] == tuple(METRICS)


def test_every_metric_says_its_formula_source_range_and_what_it_is_blind_to() -> None:
    for metric in METRICS.values():
        assert all(word in (metric.__doc__ or "") for word in ("Source:", "Range:", "nvariant to", "Blind to"))


@pytest.mark.usefixtures("elsewhere")
def test_a_metric_of_another_package_is_used_by_its_name() -> None:
    assert "range-of-means" in metric_names()
    batch = features(2, 6, 6, 5)
    measured = measure(batch, (1, 2), "range-of-means")
    expected = measured.maps[2].amax(-1) - measured.maps[2].amin(-1)
    assert torch.equal(measured.sigmas[2], expected)
    reduced = reduce(batch, (1, 2), [[inf, inf]] * 2, metric="range-of-means")
    torch.testing.assert_close(reduced.scores[:, 1], expected.mean((1, 2)))


@pytest.mark.usefixtures("elsewhere")
def test_it_is_loaded_by_its_first_use() -> None:
    metric_names()
    metric_by_name("std")
    assert "elsewhere" not in sys.modules
    metric_by_name("range-of-means")
    assert "elsewhere" in sys.modules


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("of-wrong-shape", r"must give a float32 \(3, 4\) map at factor 2 .* gave torch.float32 \(12,\)"),
        ("of-wrong-dtype", r"gave torch.float64"),
        ("of-one-factor", r"each of the factors \(2, 3\) to a tensor, it gave \[2\]"),
        ("of-nothing", "to a tensor, it gave None"),
        ("that-is-negative", "must give finite numbers from 0 up"),
        ("that-raises", r"\(elsewhere:that_raises\) failed on a trial: RuntimeError: out of luck"),
        ("number", r"\(elsewhere:NUMBER\) must be callable, it is 7"),
        ("missing", r"\(elsewhere:missing\) cannot be loaded: AttributeError"),
        ("of-no-module", r"\(nowhere_at_all:metric\) cannot be loaded: ModuleNotFoundError"),
        ("cosine", "'cosine' is ours, and elsewhere:range_of_means may not take its name"),
        ("best", "unknown metric 'best', choose one of std, std-normalised, .*range-of-means"),
    ],
)
def test_a_bad_one_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        metric_by_name(name)


def test_a_name_that_two_packages_claim_is_refused(elsewhere: Path) -> None:
    install(elsewhere, "another", {"range-of-means": "elsewhere:of_nothing"})
    with pytest.raises(ValueError, match=r"offered by elsewhere:.* and by elsewhere:"):
        metric_by_name("range-of-means")


@pytest.mark.usefixtures("elsewhere")
def test_a_picture_of_which_a_metric_makes_no_finite_number_is_reported_and_leaves_its_batch_mates_alone() -> None:
    batch = features(3, 4, 4, 5)
    batch[1, 0, 0, 0] = 60
    reduced = reduce(batch, (1, 2), [[inf, inf]] * 3, metric="that-overflows")
    assert reduced.finite == [True, False, True]
    assert reduced.factors == [2, 0, 2]
    assert all(isnan(score) for score in reduced.scores[1].tolist())


@pytest.mark.parametrize("name", ["std", "std-normalised", "cosine", "spectral", "gradient", "entropy"])
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_bad_picture_is_reported_under_every_metric(name: str, bad: float) -> None:
    batch = features(3, 4, 4, 5)
    batch[1, 2, 3, 4] = bad
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = [[inf, inf]] * 3
    reduced = reduce(batch, (1, 2), rows, metric=name, pixels=pixels)
    clean = reduce(batch[[0, 2]], (1, 2), rows[:2], metric=name, pixels=pixels[[0, 2]])
    assert reduced.finite == [True, False, True]
    assert torch.equal(reduced.scores[[0, 2]], clean.scores)
    assert torch.equal(reduced.features, clean.features)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_an_empty_batch_is_measured_to_nothing(name: str) -> None:
    batch = features(0, 4, 4, 5)
    measured = measure(batch, (1, 2), name, torch.zeros(0, 3, 16, 16, dtype=torch.uint8))
    assert measured.sigmas[2].shape == (0, 2, 2)
