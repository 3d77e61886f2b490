"""Both phases run, stop when their time is up, and go on from their checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from training import language_phase, plot, runtime, vision_phase
from training.vision_phase import pool, quarter


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    threads = torch.get_num_threads()
    yield tmp_path
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def _progress(path: Path) -> tuple[int, float]:
    content = runtime.load(path)
    assert content is not None
    return int(content["step"]), float(content["seconds"]) / 60


def test_phases_resume_and_follow_each_other(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_phase, "BATCH", dict.fromkeys(language_phase.BATCH, 4))
    vision = vision_phase.Settings(minutes=0.02, batch=2)
    vision_phase.run(0, 1, work, vision)
    first, minutes = _progress(work / "vision.pt")
    vision_phase.run(0, 1, work, vision)
    assert _progress(work / "vision.pt") == (first, minutes)
    vision_phase.run(0, 1, work, vision._replace(minutes=minutes + 0.005))
    assert _progress(work / "vision.pt")[0] > first
    language_phase.run(0, 1, work, language_phase.Settings(minutes=0.03, capacity=16, first=16, fresh=2))
    assert _progress(work / "language.pt")[0] > 0


def test_language_phase_asks_for_the_vision_phase(work: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vision\.pt"):
        language_phase.run(0, 1, work, language_phase.Settings(minutes=0.01))


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 6, 8])
def test_pooling_is_the_mean_of_each_window(factor: int) -> None:
    maps = torch.randn(2, 24, 24, 5)
    expected = torch.nn.functional.avg_pool2d(maps.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    torch.testing.assert_close(pool(maps, factor), expected)


def test_quarters_are_in_reading_order() -> None:
    maps = torch.arange(576).view(1, 24, 24)
    assert quarter(maps)[:, 0, 0].tolist() == [0, 12, 12 * 24, 12 * 24 + 12]


def test_learning_rate_rises_holds_and_falls() -> None:
    rates = [runtime.learning_rate(progress / 100) for progress in range(101)]
    assert rates[0] < rates[2] == rates[49] == 1.0
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(0.04)


def test_log_becomes_a_plot(tmp_path: Path) -> None:
    for step in range(4):
        runtime.report(tmp_path, "vision", step, 60.0 * step, {"loss": 4.0 - step, "char": 0.1})
    plot.plot(tmp_path / "log.csv", tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size == (plot.WIDE, plot.HIGH)
