"""What the worker makes of an encode that fails: who is blamed, what is tried again, and when it gives up."""

from typing import Any

import pytest
import torch

from server.vllm_plugin import worker
from server.vllm_plugin.worker import DfmrWorkerExtension

JOBS = [{"choice": [[1.0]], "method": "dfmr", "levels": False}] * 3


class Failing(DfmrWorkerExtension):
    """Fails on batches with a picture of 13s."""

    device = torch.device("cpu")

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.batches: list[int] = []

    def _encode(self, *arguments: Any) -> list[dict[str, Any]]:
        raw, jobs = arguments[-2:]
        self.batches.append(len(jobs))
        if (raw == 13).any():
            raise self.error
        return [{"scores": []} for _ in jobs]


def encode(failing: Failing) -> list[dict[str, Any]] | None:
    return failing.dfmr_encode(bytes([1, 13, 2]), [3, 1, 1, 1], [], [1], "mean", "std", JOBS)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_to(world: int, rank: int = 0) -> None:
        monkeypatch.setattr(worker, "get_pp_group", lambda: type("Group", (), {"is_first_rank": True}))
        monkeypatch.setattr(worker, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(worker, "get_tensor_model_parallel_world_size", lambda: world)

    return set_to


def test_alone_the_picture_that_is_to_blame_is_found(ranks: Any) -> None:
    ranks(1)
    failing = Failing(RuntimeError("thirteen"))
    assert encode(failing) == [{"scores": []}, {"error": "RuntimeError: thirteen"}, {"scores": []}]
    assert failing.batches == [3, 1, 1, 1]


def test_one_of_several_ranks_tries_nothing_again(ranks: Any) -> None:
    ranks(2)
    failing = Failing(RuntimeError("thirteen"))
    assert encode(failing) == [{"error": "RuntimeError: thirteen"}] * 3
    assert failing.batches == [3]
    ranks(2, rank=1)
    assert encode(failing) is None


@pytest.mark.parametrize("lost", [False, True])
def test_a_worker_ends_with_its_gpu(ranks: Any, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    ranks(1)
    ended: list[int] = []

    def ones(*_: Any, **__: Any) -> torch.Tensor:
        if lost:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return torch.zeros(1)

    def end(status: int) -> None:
        ended.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(worker.torch, "ones", ones)
    monkeypatch.setattr(worker.os, "_exit", end)
    failing = Failing(torch.AcceleratorError("a launch failed"))
    if lost:
        with pytest.raises(SystemExit):
            encode(failing)
        assert ended == [1]
    else:
        assert encode(failing) is not None
        assert not ended
