"""Placeholders: exactly one image token per kept visual token.

Requests' pictures come here already encoded (`prompt_with_features`). vLLM's processor classes remain for what it does
itself before any request: profiling memory with dummy pictures, whose every token is kept.
"""

from collections.abc import Mapping, Sequence

from transformers import BatchFeature, CLIPVisionConfig, LlavaConfig
from transformers.models.llava import LlavaProcessor
from vllm.config.multimodal import BaseDummyOptions
from vllm.inputs import MultiModalDataDict, MultiModalInput, mm_input
from vllm.model_executor.models.clip import CLIPEncoderInfo
from vllm.model_executor.models.siglip import SiglipEncoderInfo
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from server.encoding.jobs import EncodedPicture

FEATURES_KEY = "visual_features"
"""Name of the model input that holds one picture's pooled features, ``(tokens, channels)``."""


class DfmrProcessingInfo(BaseProcessingInfo):
    """Sizes of the checkpoint's pictures."""

    def get_hf_config(self) -> LlavaConfig:
        return self.ctx.get_hf_config(LlavaConfig)

    def get_hf_processor(self, **kwargs: object) -> LlavaProcessor:
        processor = self.ctx.get_hf_processor(LlavaProcessor, **kwargs)
        if processor.patch_size is None:
            processor.patch_size = self.get_hf_config().vision_config.patch_size
        return processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_grid(self) -> tuple[int, int]:
        """Rows and columns of the tower's feature map."""
        config = self.get_hf_config()
        info = CLIPEncoderInfo if isinstance(config.vision_config, CLIPVisionConfig) else SiglipEncoderInfo
        side: int = info(config).get_patch_grid_length()
        return side, side

    def get_image_size(self) -> int:
        size: int = self.get_hf_config().vision_config.image_size
        return size

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None:
        rows, columns = self.get_grid()
        return {"image": rows * columns}


class DfmrDummyInputsBuilder(BaseDummyInputsBuilder[DfmrProcessingInfo]):
    """Blank pictures for vLLM's memory profiling."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        token: str = self.info.get_hf_processor().image_token
        return token * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, BaseDummyOptions]
    ) -> MultiModalDataDict:
        side = self.info.get_image_size()
        pictures = self._get_dummy_images(
            width=side, height=side, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        return {"image": pictures}


class DfmrMultiModalProcessor(BaseMultiModalProcessor[DfmrProcessingInfo]):
    """Upstream's one-phase path: pixels in, every token kept."""

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "pixel_values": MultiModalFieldConfig.batched("image"),
            "image_embeds": MultiModalFieldConfig.batched("image"),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        token = self.info.get_hf_config().image_token_index
        rows, columns = self.info.get_grid()

        def placeholders(index: int) -> list[int]:
            items = mm_items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
            if isinstance(items, ImageEmbeddingItems):
                return [token] * items.get_feature_size(index)
            return [token] * (rows * columns)

        return [PromptReplacement(modality="image", target=[token], replacement=placeholders)]


def prompt_with_features(
    prompt: Sequence[int], image_token: int, pictures: Sequence[EncodedPicture]
) -> MultiModalInput:
    """Expand the image token of each picture to one per kept visual token, and attach the features.

    Args:
        prompt: token ids with one ``image_token`` per picture, in the order of ``pictures``. Further ones are what
            somebody wrote, and stay as they are: as upstream has it, the first are the pictures'.

    Raises:
        ValueError: the prompt holds fewer image tokens than there are pictures.
    """
    found = sum(token == image_token for token in prompt)
    if found < len(pictures):
        raise ValueError(f"the prompt has {found} image placeholders for {len(pictures)} images")
    expanded: list[int] = []
    ranges: list[PlaceholderRange] = []
    remaining = iter(pictures)
    for token in prompt:
        if token == image_token and (picture := next(remaining, None)) is not None:
            length = len(picture.features.tensor)
            ranges.append(PlaceholderRange(offset=len(expanded), length=length))
            expanded.extend([image_token] * length)
        else:
            expanded.append(token)
    field = MultiModalBatchedField()
    items = [
        MultiModalKwargsItem({FEATURES_KEY: MultiModalFieldElem(data=p.features.tensor, field=field)}) for p in pictures
    ]
    return mm_input(
        prompt_token_ids=expanded,
        mm_kwargs=MultiModalKwargsItems({"image": items}),
        mm_hashes={"image": [p.key for p in pictures]},
        mm_placeholders={"image": ranges},
    )
