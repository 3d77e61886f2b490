"""What an encoder is known by again: its configuration, and what it makes of one fixed picture."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from server.encoding.preprocess import Preprocessor
from server.profiles.format import Fingerprint

CHANNELS = 32
"""Channels that are kept: enough to tell encoders apart, few enough to stand in a profile."""

_TOWER = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
)


def config_digest(vision: Mapping[str, Any], layer: int, strategy: str, preprocessor: Preprocessor) -> str:
    """Digest of what determines an encoder's features beside its weights.

    Args:
        vision: the tower's configuration.
        layer: whose features are taken.
        strategy: whether the CLS token is among them.
        preprocessor: how pixels become its input.
    """
    described = {
        "tower": {name: vision.get(name) for name in _TOWER},
        "features": [layer, strategy],
        "input": [preprocessor.height, preprocessor.width],
        "normalise": [round(float(v), 6) for v in (preprocessor.scale, *preprocessor.mean, *preprocessor.std)],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def fixed_picture(height: int, width: int) -> NDArray[np.uint8]:
    """A picture ``(3, height, width)`` of slopes, edges and fine texture, from integers alone: the same everywhere."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    slope = x * 255 // max(width - 1, 1)
    board = (x // 16 + y // 16) % 2 * 160 + y * 64 // height
    texture = (x * x * 7 + y * y * 13 + x * y * 5) % 251
    return np.stack([slope, board, np.where(y > x, texture, slope)]).astype(np.uint8)


def fingerprint(config: str, features: torch.Tensor) -> Fingerprint:
    """From the features ``(tokens, channels)`` of the fixed picture: their means, at evenly spaced channels."""
    means = features.double().mean(0)
    chosen = means[torch.linspace(0, len(means) - 1, min(CHANNELS, len(means))).round().long()]
    return Fingerprint(config=config, features=tuple(float(f"{value:.4g}") for value in chosen.tolist()))
