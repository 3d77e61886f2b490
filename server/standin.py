"""Random-weight LLaVA checkpoints with real files: a stand-in for a model, and small ones for tests.

``python -m server.standin FOLDER`` writes one. It answers with noise; everything around the answers is real.
"""

import argparse
import json
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from server.profiles.checkpoint import PROFILE_FILE

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
STANDIN_POLICY = {"tau": {2: 3.5, 3: 2.8, 4: 2.4, 6: 1.4}, "factors": [1, 2, 3, 4, 6]}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the four special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def write_checkpoint(
    folder: Path,
    *,
    tower: Literal["clip", "siglip"] = "clip",
    image_size: int = 336,
    hidden: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    profile: bool = True,
) -> None:
    """Write a Hugging Face checkpoint with random weights.

    Args:
        folder: made if it is missing; files in it are overwritten.
        tower: the vision tower, patch size 14; SigLIP has no CLS token and resizes without cropping.
        image_size: side of the tower's input in pixels.
        hidden: width of the language model; heads have 64 channels, a size that vLLM's CPU attention has.
        profile: write a `dfmr_profile.json` that offers high factors, as if the weights were trained with them.
    """
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    side = {"image_size": image_size, "patch_size": 14}
    vision: CLIPVisionConfig | SiglipVisionConfig
    if tower == "clip":
        vision = CLIPVisionConfig(**sizes, **side, projection_dim=64, initializer_factor=4.0)
        images = CLIPImageProcessorPil(
            size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
        )
    else:
        vision = SiglipVisionConfig(**sizes, **side)
        images = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=8192,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        vision_feature_layer=-2,
        image_seq_length=(image_size // 14) ** 2,
    )
    model = LlavaForConditionalGeneration(config).to(dtype)
    model.generation_config.pad_token_id = 0
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1 if tower == "clip" else 0,
    ).save_pretrained(folder)
    if profile:
        note = "random weights: the thresholds only make different pictures get different factors"
        (folder / PROFILE_FILE).write_text(json.dumps({"policy": STANDIN_POLICY, "note": note}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tower", choices=("clip", "siglip"), default="clip")
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, tower=arguments.tower)


if __name__ == "__main__":
    main()
