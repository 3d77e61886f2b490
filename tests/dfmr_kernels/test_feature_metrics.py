from collections.abc import Callable

import metric_oracle
import oracle
import pytest
import torch
from comparing import DTYPES, FACTORS, features
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfmr_kernels import measure

ORACLES = {
    "std": oracle.window_sigma,
    "std-normalised": metric_oracle.std_normalised,
    "cosine": metric_oracle.cosine,
    "spectral": metric_oracle.spectral,
}
OF_DIRECTIONS = ["std-normalised", "cosine"]
every_metric = pytest.mark.parametrize("name", sorted(ORACLES))


def maps(name: str, batch: Tensor, *factors: int) -> dict[int, Tensor]:
    return measure(batch, (1, *factors), name).sigmas


def assert_is_the_oracles(name: str, batch: Tensor, factors: tuple[int, ...]) -> None:
    measured = maps(name, batch, *factors)
    for s in factors:
        for index, picture in enumerate(batch.double().numpy()):
            expected = torch.from_numpy(ORACLES[name](picture, s))
            torch.testing.assert_close(measured[s][index].double(), expected, rtol=2e-5, atol=1e-6)
            assert measured[s].dtype == torch.float32


@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
def test_window_maps_are_the_oracles(name: str, dtype: torch.dtype) -> None:
    assert_is_the_oracles(name, features(2, 12, 12, 16, dtype=dtype), (2, 3, 4, 6))


@every_metric
def test_windows_cut_off_at_the_edge_hold_the_tokens_they_have(name: str) -> None:
    batch = features(1, 27, 27, 9)
    assert_is_the_oracles(name, batch, (2, 8))
    assert maps(name, batch, 2)[2].shape == (1, 14, 14)
    assert maps(name, batch, 2)[2][0, -1, -1] == 0  # one token, so nothing is averaged


@every_metric
@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.integers(1, 9),
    s=st.integers(2, 8),
    seed=st.integers(0, 999),
)
def test_any_small_map_is_the_oracles(name: str, height: int, width: int, channels: int, s: int, seed: int) -> None:
    assert_is_the_oracles(name, features(1, height, width, channels, seed=seed), (s,))


@every_metric
@pytest.mark.parametrize("value", [0.0, 0.1, -3e30, 1e-30])
def test_a_picture_that_is_the_same_everywhere_hides_nothing(name: str, value: float) -> None:
    for window_map in maps(name, torch.full((1, 9, 9, 5), value), 2, 3, 4).values():
        assert not window_map.any()


@every_metric
def test_a_picture_is_measured_alike_in_any_batch(name: str) -> None:
    batch = features(5, 24, 24, 64, dtype=torch.bfloat16)
    together = maps(name, batch, *FACTORS[1:])
    for index in range(5):
        alone = maps(name, batch[index : index + 1], *FACTORS[1:])
        assert all(torch.equal(together[s][index], alone[s][0]) for s in FACTORS)


@every_metric
def test_the_order_of_tokens_within_a_window_does_not_matter(name: str) -> None:
    batch = features(1, 4, 4, 8)
    turned = batch.view(1, 2, 2, 2, 2, 8).flip(2, 4).reshape(1, 4, 4, 8)
    torch.testing.assert_close(maps(name, turned, 2)[2], maps(name, batch, 2)[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["std-normalised", "cosine", "spectral"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_the_encoders_scale_does_not_matter(name: str, scale: float) -> None:
    batch = features(1, 6, 6, 8)
    torch.testing.assert_close(maps(name, batch * scale, 3)[3], maps(name, batch, 3)[3], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OF_DIRECTIONS)
def test_the_length_of_a_token_does_not_matter(name: str) -> None:
    batch = features(1, 6, 6, 8)
    lengths = torch.rand(1, 6, 6, 1, generator=torch.Generator().manual_seed(1)) * 100 + 0.01
    torch.testing.assert_close(maps(name, batch * lengths, 2)[2], maps(name, batch, 2)[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "spectral"])
def test_turning_the_channel_space_does_not_matter(name: str) -> None:
    batch = features(1, 6, 6, 8)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2))).Q
    torch.testing.assert_close(maps(name, batch @ turn, 3)[3], maps(name, batch, 3)[3], rtol=1e-4, atol=1e-5)


def test_an_outlier_token_counts_no_more_than_another_where_lengths_do_not_matter() -> None:
    batch = features(1, 2, 2, 32)
    outlier = batch.clone()
    outlier[0, 0, 0] *= 1000
    assert maps("std", outlier, 2)[2] > 100 * maps("std", batch, 2)[2]
    torch.testing.assert_close(maps("cosine", outlier, 2)[2], maps("cosine", batch, 2)[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        ("cosine", [[1, 0], [0, 1]], 1.0),
        ("cosine", [[1, 0], [-5, 0]], 2.0),
        ("cosine", [[0, 0], [3, 4]], 0.5),
        ("std-normalised", [[7, 0], [0, 2]], 0.5 * 2**0.5),  # +-1/2 in both channels, times sqrt(2)
        ("spectral", [[1, 0], [-1, 0]], 1.0),  # rank 1, and all of the energy is lost
        ("spectral", [[3, 1], [3, -1]], 0.1),  # rank 1, and 2 of 20 are lost
    ],
)  # fmt: skip
def test_windows_worked_by_hand(name: str, tokens: list[list[float]], expected: float) -> None:
    batch = torch.tensor([[tokens]], dtype=torch.float32)
    assert maps(name, batch, 2)[2].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "most"),
    [("std-normalised", lambda n: 1), ("cosine", lambda n: n / (n - 1)), ("spectral", lambda n: n - 1)],
)
@settings(max_examples=25, deadline=None)
@given(s=st.integers(2, 4), channels=st.integers(1, 12), seed=st.integers(0, 999))
def test_ranges_are_the_documented_ones(
    name: str, most: Callable[[int], float], s: int, channels: int, seed: int
) -> None:
    window_map = maps(name, features(1, 12, 12, channels, seed=seed), s)[s]
    assert window_map.min() >= 0
    assert window_map.max() <= most(s * s) * (1 + 1e-5)
