"""Bench models have the shapes they claim."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from loadtests.models import SHAPES, Shape, write


def test_llava_7b_costs_what_the_literature_says() -> None:
    shape = SHAPES["7b"]
    assert shape.prefill_flops(576) == pytest.approx(2 * 6.47e9 * 576, rel=0.03)
    assert shape.tower_flops() == pytest.approx(0.36e12, rel=0.05)


@pytest.mark.parametrize("name", ["small", "1b"])
def test_smaller_models_keep_its_ratio_of_encoder_to_language_model(name: str) -> None:
    assert SHAPES[name].encoder_share == pytest.approx(SHAPES["7b"].encoder_share, rel=0.15)


def test_a_quarter_of_the_tokens_costs_less_than_a_quarter() -> None:
    shape = SHAPES["7b"]
    assert shape.prefill_flops(144) < shape.prefill_flops(576) / 4


@pytest.mark.parametrize("name", SHAPES)
def test_a_checkpoint_has_everything_but_weights(tmp_path: Path, name: str) -> None:
    shape: Shape = SHAPES[name]
    write(tmp_path, shape)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.image_seq_length == shape.tokens
    assert config.text_config.num_hidden_layers == shape.text[2]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    assert AutoProcessor.from_pretrained(tmp_path, use_fast=False).image_processor is not None
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_letter_is_a_token_and_every_token_is_text(tmp_path: Path) -> None:
    write(tmp_path, SHAPES["tiny"])
    words = AutoTokenizer.from_pretrained(tmp_path)
    assert len(words("a" * 100).input_ids) == 100
    assert len(words) == SHAPES["tiny"].vocabulary
    assert all(words.decode([token]) for token in range(4, len(words)))
