"""Bench models: real shapes without weights. vLLM fills them at random (``--load-format dummy``), as speed does not
depend on what the weights say."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from server.standin import CHAT_TEMPLATE, SPECIAL_TOKENS

FACTORS = (1, 2, 3, 4, 6)
"""Pooling factors that bench servers offer; requests force one of them for each picture."""


@dataclass(frozen=True)
class Shape:
    """A LLaVA's sizes. The names are those of Hugging Face's configurations.

    Attributes:
        text: hidden size, intermediate size, layers, query heads, key-value heads of the Llama.
        tower: hidden size, intermediate size, layers, heads of the CLIP tower, patch size 14.
        vocabulary: rows of the embedding table.
        context: the longest sequence that the model is made for.
        note: what it stands for.
    """

    text: tuple[int, int, int, int, int]
    tower: tuple[int, int, int, int]
    vocabulary: int
    context: int
    note: str
    image_size: int = 336

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture before any reduction."""
        return (self.image_size // 14) ** 2

    def tower_flops(self) -> float:
        """Floating-point operations of encoding one picture: all layers but the last, as LLaVA reads the one before."""
        width, inner, layers, _ = self.tower
        return (layers - 1) * _layer_flops(self.tokens + 1, 4 * width * width + 2 * width * inner, width, causal=False)

    def prefill_flops(self, tokens: int) -> float:
        """Floating-point operations of prefilling a prompt of that many tokens, without the output layer."""
        width, inner, layers, heads, kv_heads = self.text
        attention = 2 * width * width + 2 * width * width * kv_heads // heads
        return layers * _layer_flops(tokens, attention + 3 * width * inner, width, causal=True)

    @property
    def encoder_share(self) -> float:
        """Cost of encoding a picture over that of prefilling its uncompressed tokens."""
        return self.tower_flops() / self.prefill_flops(self.tokens)


def _layer_flops(tokens: int, weights: int, width: int, *, causal: bool) -> float:
    scores = 4 * tokens * tokens * width / (2 if causal else 1)
    return 2.0 * tokens * weights + scores


SHAPES = {
    "tiny": Shape((128, 256, 2, 2, 2), (64, 128, 3, 2), 512, 8192, "no model to speak of: what is left is the server"),
    "small": Shape(
        (512, 1408, 8, 8, 8), (192, 768, 3, 3), 2048, 8192, "LLaVA-1.5-7B's proportions at 1/230 of its cost"
    ),
    "1b": Shape((2048, 8192, 16, 32, 8), (512, 2048, 12, 8), 32064, 8192, "a 1B Llama with a small tower"),
    "7b": Shape((4096, 11008, 32, 32, 32), (1024, 4096, 24, 16), 32064, 4096, "LLaVA-1.5-7B, exactly"),
}


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token per byte, the special ones, and fillers, so that whatever id a model samples is text of some kind."""
    alphabet = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names = alphabet + [f"\u0120{index}" for index in range(len(alphabet), vocabulary)]
    made = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        model_max_length=1 << 20,
    )


def write(folder: Path, shape: Shape) -> None:
    """Write a checkpoint's files but its weights: configuration, tokenizer and processor."""
    words = tokenizer(shape.vocabulary)
    width, inner, layers, heads, kv_heads = shape.text
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=shape.context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    width, inner, layers, heads = shape.tower
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=shape.image_size,
        patch_size=14,
        projection_dim=width,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=shape.tokens,
        architectures=["LlavaForConditionalGeneration"],
        dtype="bfloat16",
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    side = {"height": shape.image_size, "width": shape.image_size}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": shape.image_size}, crop_size=side),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.folder, shape := SHAPES[arguments.name])
    print(f"{arguments.folder}: {shape.note}")
    print(f"encoding a picture costs {shape.encoder_share:.1%} of prefilling its {shape.tokens} tokens")


if __name__ == "__main__":
    main()
