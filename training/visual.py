"""A LLaVA checkpoint's feature maps, and what pooling leaves of them, outside the server."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from dfmr_kernels.reference import pyramid


@torch.no_grad()
def feature_maps(model: LlavaForConditionalGeneration, pictures: Tensor) -> Tensor:
    """The maps (pictures, rows, columns, channels) that the compressor pools.

    ``pictures``: normalised pixels (pictures, 3, height, width).
    """
    tower, config = model.model.vision_tower, model.config
    states = tower(pictures.to(tower.dtype), output_hidden_states=True).hidden_states
    layers = config.vision_feature_layer
    chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    if config.vision_feature_select_strategy == "default":
        chosen = [state[:, 1:] for state in chosen]
    features = torch.cat(chosen, -1)
    side = round(features.shape[1] ** 0.5)
    return features.reshape(len(features), side, side, features.shape[-1])


@torch.no_grad()
def kept_tokens(maps: Tensor, factors: Sequence[int]) -> list[Tensor]:
    """Each picture's kept tokens (tokens, channels), row-major: ``maps[i]`` pooled by ``factors[i]``.

    ``maps``: (pictures, rows, columns, channels).
    """
    kept: dict[int, Tensor] = {}
    for s in set(factors):
        places = [index for index, factor in enumerate(factors) if factor == s]
        pooled = pyramid(maps[places], [s]).maps[s].flatten(1, 2)
        kept.update(zip(places, pooled, strict=True))
    return [kept[index] for index in range(len(factors))]
