"""The served model against transformers' own LLaVA: the same weights, prompts and pictures, token for token."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from pictures import flat, message, noise, scene
from PIL import Image
from serving import Server
from torch.nn import functional as F
from transformers import AutoProcessor, LlavaForConditionalGeneration

pytestmark = pytest.mark.engine
NEW_TOKENS = 12
PROMPTS = [[scene(i)] for i in range(18)] + [[flat()], [noise()], [scene(1), noise(1)], [scene(4), flat(), scene(9)]]


class Reference:
    """transformers' model with average pooling between tower and projector."""

    def __init__(self, folder: str) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None
        self.image_token = self.model.config.image_token_index

    def generate(self, pictures: Sequence[Image.Image], factor: int) -> list[int]:
        messages = [
            {
                "role": "user",
                "content": [{"type": "image"}] * len(pictures) + [{"type": "text", "text": "What is this?"}],
            }
        ]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        pixels = self.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        kept = (24 // factor) ** 2
        expanded = [token for i in ids for token in ([i] * kept if i == self.image_token else [i])]
        hook = self.model.model.multi_modal_projector.register_forward_pre_hook(partial(pooled_input, factor))
        try:
            with torch.inference_mode():
                inputs = torch.tensor([expanded])
                out = self.model.generate(
                    input_ids=inputs,
                    attention_mask=torch.ones_like(inputs),
                    pixel_values=pixels,
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                )
        finally:
            hook.remove()
        tokens: list[int] = out[0, inputs.shape[1] :].tolist()
        return tokens


def pooled_input(factor: int, module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Average-pool ``(pictures, 576, channels)`` as PyTorch does, independently of our kernels."""
    features = inputs[0]
    maps = features.unflatten(-2, (24, 24)).permute(0, 3, 1, 2)
    return (F.avg_pool2d(maps, factor).flatten(2).transpose(1, 2),)


@pytest.fixture(scope="module")
def reference(server: Server) -> Reference:
    return Reference(str(server.model))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_greedy_tokens_equal_transformers(server: Server, reference: Reference, factor: int) -> None:
    prompts = PROMPTS if factor == 1 else PROMPTS[::4] + PROMPTS[-2:]
    for pictures in prompts:
        response = server.client.chat.completions.create(
            model="small",
            messages=message(*pictures),  # type: ignore[arg-type]
            temperature=0,
            max_tokens=NEW_TOKENS,
            extra_body={"dfmr": {"factors": [factor]}, "ignore_eos": True, "return_token_ids": True},
        )
        served = response.choices[0].model_extra["token_ids"]  # type: ignore[index]
        assert served == reference.generate(pictures, factor)
