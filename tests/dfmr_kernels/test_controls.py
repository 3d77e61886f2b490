import pytest
import torch

from dfmr_kernels.controls import drop

MAP = torch.arange(24, dtype=torch.float32).view(3, 4, 2)


def test_drop_cls_keeps_the_tokens_most_similar_to_cls_in_row_major_order() -> None:
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[5.0, 5.0], [-1.0, 0.0]]])
    kept = drop(features, 2, "drop-cls", torch.tensor([2.0, 0.5]), seed=0)
    # Cosines with (2, 0.5) are .970, .243, .857 and -.970: length does not matter, order in the map does.
    assert kept.tolist() == [[1.0, 0.0], [5.0, 5.0]]


def test_drop_cls_gives_ties_to_the_earlier_token() -> None:
    kept = drop(torch.ones(2, 2, 3) * torch.tensor([1.0, 2.0]).view(1, 2, 1), 1, "drop-cls", torch.ones(3), seed=0)
    assert kept.tolist() == [[1.0, 1.0, 1.0]]


def test_drop_random_is_a_sample_without_replacement_that_the_seed_decides() -> None:
    kept = drop(MAP, 5, "drop-random", None, seed=3)
    rows = kept[:, 0].tolist()
    assert rows == sorted(set(rows))
    assert all(row.tolist() in MAP.flatten(0, 1).tolist() for row in kept)
    assert torch.equal(kept, drop(MAP, 5, "drop-random", None, seed=3))
    assert any(not torch.equal(kept, drop(MAP, 5, "drop-random", None, seed=s)) for s in range(4, 9))


@pytest.mark.parametrize("method", ["drop-cls", "drop-random"])
def test_keeping_every_token_changes_nothing(method: str) -> None:
    assert torch.equal(drop(MAP, 12, method, torch.ones(2), seed=0), MAP.flatten(0, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 13])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {count} of 12 tokens"):
        drop(MAP, count, "drop-random", None, seed=0)


def test_drop_cls_without_a_cls_token_is_refused() -> None:
    with pytest.raises(ValueError, match="CLS token"):
        drop(MAP, 3, "drop-cls", None, seed=0)


def test_pooling_is_no_way_to_drop() -> None:
    with pytest.raises(ValueError, match="'dfmr' drops no tokens"):
        drop(MAP, 3, "dfmr", None, seed=0)
