"""LLaVA for vLLM, with the vision tower callable on its own: tower -> (DFMR, in the worker) -> projector -> LLM."""

import math
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlavaConfig
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
)
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.siglip import SiglipVisionModel
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    get_layer_index,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from server.vllm_plugin.processing import (
    FEATURES_KEY,
    DfmrDummyInputsBuilder,
    DfmrMultiModalProcessor,
    DfmrProcessingInfo,
)


class Projector(nn.Module):
    """Two linear layers from the tower's width to the language model's, split over tensor-parallel ranks."""

    def __init__(self, config: LlavaConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        bias = config.multimodal_projector_bias
        self.linear_1 = ColumnParallelLinear(
            config.vision_config.hidden_size, width, bias, quant_config=quant_config, prefix=f"{prefix}.linear_1"
        )
        self.act = get_act_fn(config.projector_hidden_act)
        self.linear_2 = RowParallelLinear(width, width, bias, quant_config=quant_config, prefix=f"{prefix}.linear_2")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(..., tower width)`` to ``(..., language model width)``."""
        hidden, _ = self.linear_1(features)
        projected: torch.Tensor = self.linear_2(self.act(hidden))[0]
        return projected


@MULTIMODAL_REGISTRY.register_processor(
    DfmrMultiModalProcessor, info=DfmrProcessingInfo, dummy_inputs=DfmrDummyInputsBuilder
)
class DfmrLlavaForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """LLaVA-1.5-like checkpoints with a CLIP or SigLIP tower.

    Pictures of requests arrive as pooled features and only pass the projector here; `encode_pictures` is what the
    worker extension calls to make them. Pictures that come as pixels (vLLM's memory profiling) pass the whole way.
    """

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_regex={
            re.compile(r"^model\.(vision_tower|multi_modal_projector)\."): r"\1.",
            re.compile(r"^model\.language_model\."): "language_model.model.",
            re.compile(r"^lm_head\."): "language_model.lm_head.",
            re.compile(r"^vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model.",
        }
    )

    configure_mm_token_handling: Callable[[int, list[int]], None]
    _mark_tower_model: Callable[[VllmConfig, str], AbstractContextManager[None]]
    _mark_language_model: Callable[[VllmConfig], AbstractContextManager[None]]
    vision_tower: CLIPVisionModel | SiglipVisionModel
    multi_modal_projector: Projector

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What a chat template with plain-string content gets for a picture."""
        if modality.startswith("image"):
            return "<image>"
        raise ValueError(f"only pictures are supported, not {modality}")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: LlavaConfig = vllm_config.model_config.hf_config
        quant_config = vllm_config.quant_config
        self.config = config
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.image_token_index])

        with self._mark_tower_model(vllm_config, "image"):
            tower = CLIPVisionModel if isinstance(config.vision_config, CLIPVisionConfig) else SiglipVisionModel
            self.vision_tower = tower(
                config.vision_config,
                quant_config=quant_config,
                num_hidden_layers_override=get_layer_index(
                    config.vision_feature_layer, config.vision_config.num_hidden_layers
                ),
                require_post_norm=False,
                prefix=maybe_prefix(prefix, "vision_tower"),
            )
            self.multi_modal_projector = Projector(config, quant_config, maybe_prefix(prefix, "multi_modal_projector"))
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def encode_with_cls(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`encode_pictures`, and ``(pictures, channels)`` CLS tokens of the same layer; None for towers without one."""
        if not isinstance(self.config.vision_config, CLIPVisionConfig):
            return self.encode_pictures(pixels), None
        tokens: torch.Tensor = self.vision_tower(pixels.to(self.vision_tower.dtype), feature_select_strategy="full")
        side = math.isqrt(tokens.shape[1])
        return tokens[:, 1:].unflatten(1, (side, side)), tokens[:, 0]

    def encode_pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """The vision tower's feature map, before any reduction.

        Args:
            pixels: ``(pictures, 3, height, width)``, normalised.

        Returns:
            ``(pictures, rows, columns, channels)`` in the tower's dtype.
        """
        tokens: torch.Tensor = self.vision_tower(
            pixels.to(self.vision_tower.dtype),
            feature_select_strategy=self.config.vision_feature_select_strategy,
        )
        side = math.isqrt(tokens.shape[1])
        return tokens.unflatten(1, (side, side))

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Embeddings for the prompt: one ``(tokens, width)`` tensor per picture."""
        if (features := kwargs.get(FEATURES_KEY)) is not None:
            maps: list[torch.Tensor] = list(features)  # type: ignore[call-overload]
            projected = self.multi_modal_projector(torch.cat(maps))
            return torch.split(projected, [len(m) for m in maps])
        if (embeds := kwargs.get("image_embeds")) is not None:
            return embeds
        if (pixels := kwargs.get("pixel_values")) is not None:
            assert isinstance(pixels, torch.Tensor)
            return tuple(self.multi_modal_projector(self.encode_pictures(pixels).flatten(1, 2)))
        return []

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """The language model on a prompt whose placeholders are already replaced by picture embeddings."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        hidden: torch.Tensor | IntermediateTensors = self.language_model.model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits: torch.Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="multi_modal_projector", tower_model="vision_tower"
        )
