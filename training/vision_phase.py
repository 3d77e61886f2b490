"""Phase one: the vision tower alone learns what every cell of a picture shows.

Each of the 24 x 24 features is asked for thirteen labels of its cell by linear heads, and features pooled by a factor
of 2, 3 or 4 are asked for the mix of labels of their window, so that what pooling keeps is part of the objective.
In the first part of the phase every quarter of a picture is encoded alone: attention over 145 tokens rather than 577
makes a picture about half as dear, and most of what is to be learned is local.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPVisionConfig, CLIPVisionModel

from training import runtime, scenes
from training.canvas import CELL, GRID, HEADS, Cells

HIDDEN, LAYERS = 192, 4
LOCAL_GAIN = 1.5
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
QUARTER = GRID // 2
WEIGHTS = {"char": 4.0, "row": 0.15, "column": 0.15, "background": 0.5, "pattern": 0.5, "object": 0.5}
NO_NONE = ("row", "column")
"""Heads whose class 0 is a class like any other."""

AttentionInterface.register("eager_bf16", runtime.eager_attention)


def vision_config(layers: int = LAYERS) -> CLIPVisionConfig:
    """The tower: CLIP's, small. Features are the output of the last layer *here*; export adds one behind it."""
    return CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HIDDEN // 64,
        image_size=GRID * CELL,
        patch_size=CELL,
        hidden_act="gelu",
        projection_dim=HIDDEN,
    )


def _rates() -> Tensor:
    rates: Tensor = torch.logspace(0, -1 + 4 / HIDDEN, HIDDEN // 4)
    return rates


def _sincos_positions() -> Tensor:
    """2-D sine-cosine positions (577, hidden): rows' sines and cosines, then columns'; zero for the CLS token."""
    angles = torch.arange(GRID)[:, None] * _rates()
    line = torch.cat([angles.sin(), angles.cos()], 1)
    grid = torch.cat([line[:, None].expand(-1, GRID, -1), line[None].expand(GRID, -1, -1)], -1)
    return torch.cat([torch.zeros(1, HIDDEN), grid.reshape(GRID * GRID, HIDDEN)])


def _shift(down: float, right: float) -> Tensor:
    """The rotation (hidden, hidden) that moves a position by so many cells."""
    blocks = []
    for cells in (down, right):
        cosine, sine = (cells * _rates()).cos().diag(), (cells * _rates()).sin().diag()
        blocks.append(torch.cat([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)]))
    moved: Tensor = torch.block_diag(*blocks)
    return moved


def _start_local(clip: CLIPVisionModel) -> None:
    """Start with heads that look at neighbouring cells, as a convolution does: they would take long to find that."""
    for depth, layer in enumerate(clip.encoder.layers):
        step = 1.0 + depth // 2
        offsets = [(0.0, step), (0.0, -step), (0.0, 0.0)] if depth % 2 == 0 else [(step, 0.0), (-step, 0.0), (0.0, 0.0)]
        for head, offset in enumerate(offsets):
            rows = slice(64 * head, 64 * (head + 1))
            basis = torch.linalg.qr(torch.randn(HIDDEN, 64)).Q.T * LOCAL_GAIN
            layer.self_attn.k_proj.weight[rows] = basis
            layer.self_attn.q_proj.weight[rows] = basis @ _shift(*offset)


class VisionTower(nn.Module):
    """A CLIP tower in bf16 whose output is the feature map that the compressor pools."""

    def __init__(self) -> None:
        super().__init__()
        config = vision_config()
        config._attn_implementation = "eager_bf16"
        self.clip = CLIPVisionModel(config)
        with torch.no_grad():
            self.clip.embeddings.position_embedding.weight.copy_(_sincos_positions() * 0.9)
            _start_local(self.clip)
        self.to(torch.bfloat16)

    def forward(self, pixels: Tensor, quarters: bool = False) -> Tensor:
        """Feature maps (pictures, h, w, hidden) of normalised pixels (pictures, 3, 336, 336).

        With ``quarters`` each quarter is encoded alone: (4 * pictures, 12, 12, hidden), a picture's quarters in
        reading order.
        """
        embeddings = self.clip.embeddings
        positions = embeddings.position_embedding.weight
        patches = embeddings.patch_embedding(pixels.to(torch.bfloat16)).permute(0, 2, 3, 1)
        patches = patches + positions[1:].view(GRID, GRID, -1)
        if quarters:
            patches = quarter(patches)
        count, high, wide, width = patches.shape
        cls = (embeddings.class_embedding + positions[0]).expand(count, 1, width)
        hidden = torch.cat([cls, patches.reshape(count, high * wide, width)], 1)
        hidden = self.clip.encoder(inputs_embeds=self.clip.pre_layrnorm(hidden)).last_hidden_state
        features: Tensor = hidden[:, 1:].reshape(count, high, wide, width)
        return features


def quarter(maps: Tensor) -> Tensor:
    """(pictures, 24, 24, ...) to (4 * pictures, 12, 12, ...)."""
    count, rest = maps.shape[0], maps.shape[3:]
    split = maps.reshape(count, 2, QUARTER, 2, QUARTER, *rest).transpose(2, 3)
    return split.reshape(count * 4, QUARTER, QUARTER, *rest)


def pool(maps: Tensor, factor: int) -> Tensor:
    """Average pooling of (pictures, h, w, width) by ``factor`` in both directions."""
    if factor == 1:
        return maps
    count, high, wide, width = maps.shape
    windows = maps.reshape(count, high // factor, factor, wide // factor, factor, width)
    return windows.mean((2, 4))


def pixels_of(pictures: list[np.ndarray]) -> Tensor:
    """Normalised pixels (pictures, 3, 336, 336), float32, of uint8 RGB pictures (336, 336, 3)."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (stacked - mean) / std


class CellHeads(nn.Module):
    """One linear layer that holds every head, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, sum(HEADS.values()))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (..., classes) by head of features (..., hidden)."""
        logits = self.linear(features.float()).split(list(HEADS.values()), -1)
        return dict(zip(HEADS, logits, strict=True))


class VisionPhaseModel(nn.Module):
    """The tower with heads for single cells and for pooled windows."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = VisionTower()
        self.cell_heads = CellHeads()
        self.window_heads = CellHeads()

    def losses(
        self, pixels: Tensor, labels: dict[str, Tensor], quarters: bool, factor: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss over cells and over windows of ``factor``, and each head's accuracy where there is something."""
        maps = self.tower(pixels, quarters)
        if quarters:
            labels = {name: quarter(value) for name, value in labels.items()}
        total = torch.zeros(())
        right: dict[str, float] = {}
        for heads, size in ((self.cell_heads, 1), (self.window_heads, factor)):
            for name, logits in heads(pool(maps, size)).items():
                known = pool((labels[name] >= 0).float()[..., None], size)[..., 0]
                classes = nn.functional.one_hot(labels[name].clamp(min=0), HEADS[name]).float()
                target = pool(classes, size)
                total = total + WEIGHTS.get(name, 1.0) * _balanced(logits, target, known, name not in NO_NONE)
                if size == 1:
                    right[name] = _accuracy(logits, labels[name], name not in NO_NONE)
        return total / 10, right


def _balanced(logits: Tensor, target: Tensor, known: Tensor, has_none: bool) -> Tensor:
    """Cross-entropy with soft targets; cells that show something weigh, together, twice those that show nothing."""
    entropy = -(target * logits.log_softmax(-1)).sum(-1)
    some = known * (1 - target[..., 0] if has_none else 1)
    none = known - some
    return (entropy * some).sum() / (some.sum() + 4) + 0.5 * (entropy * none).sum() / (none.sum() + 4)


def _accuracy(logits: Tensor, label: Tensor, has_none: bool) -> float:
    chosen = label > 0 if has_none else label >= 0
    if not bool(chosen.any()):
        return float("nan")
    return float((logits.argmax(-1) == label)[chosen].float().mean())


class Batch(NamedTuple):
    """Normalised pixels (pictures, 3, 336, 336) and labels by head (pictures, 24, 24), int64."""

    pixels: Tensor
    labels: dict[str, Tensor]


def batch(key: str, size: int, dense_share: float) -> Batch:
    """The training pictures of that key; the first ``dense_share`` of them are collages."""
    drawn = [
        scenes.scene("train", f"{key}/{index}", "dense" if index < round(size * dense_share) else None)
        for index in range(size)
    ]
    labels: dict[str, list[Cells]] = {name: [found.labels[name] for found in drawn] for name in HEADS}
    return Batch(
        pixels_of([np.asarray(found.picture) for found in drawn]),
        {name: torch.from_numpy(np.stack(values)).long() for name, values in labels.items()},
    )


class Settings(NamedTuple):
    """How the phase is run. ``batch`` is pictures a step and process."""

    seed: int = 0
    minutes: float = 40.0
    batch: int = 8
    quarter_share: float = 0.7
    muon_rate: float = 3e-3
    adam_rate: float = 2e-3
    checkpoint_minutes: float = 2.0


def run(rank: int, processes: int, work: Path, settings: Settings) -> None:
    """Train, going on from ``work/vision.pt`` if it is there; every process runs this."""
    torch.manual_seed(settings.seed)
    model = VisionPhaseModel()
    optimizer = runtime.MixedOptimizer(model.named_parameters(), settings.muon_rate, settings.adam_rate)
    path, step, clock = work / "vision.pt", 0, runtime.Clock()
    if (saved := runtime.load(path)) is not None:
        optimizer.load(saved["optimizer"])
        step, clock = saved["step"], runtime.Clock(saved["seconds"])
    progress, seen, saved_at = clock.elapsed / (60 * settings.minutes), dict[str, list[float]](), clock.elapsed
    while progress < 1:
        random = Random(f"{settings.seed}/{step}")
        quarters = progress < settings.quarter_share
        data = batch(f"vision/{settings.seed}/{rank}/{step}", settings.batch, 0.85 if quarters else 0.6)
        loss, right = model.losses(data.pixels, data.labels, quarters, random.choice([2, 2, 3, 4]))
        loss.backward()
        mean_loss, seconds = optimizer.step(runtime.learning_rate(progress), [float(loss.detach()), clock.tick()])
        progress, step = seconds / (60 * settings.minutes), step + 1
        for name, value in {"loss": mean_loss, **right}.items():
            if value == value:
                seen.setdefault(name, []).append(value)
        if rank == 0 and step % 50 == 0:
            runtime.report(work, "vision", step, seconds, {name: float(np.mean(v)) for name, v in seen.items()})
            seen.clear()
        if rank == 0 and (progress >= 1 or seconds - saved_at > 60 * settings.checkpoint_minutes):
            saved_at = seconds
            runtime.save(
                path,
                {"optimizer": optimizer.state(), "step": step, "seconds": seconds, "tower": model.tower.state_dict()},
            )
