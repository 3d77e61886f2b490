"""A model exported from fresh weights answers in stock transformers as the trainer's own forward pass says."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from training import evaluate, runtime, scenes
from training.export import export
from training.language_phase import LanguagePhaseModel
from training.packing import IGNORED, Packer
from training.tokenizer import build
from training.vision_phase import VisionTower, pixels_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    runtime.save(work / "vision.pt", {"tower": VisionTower().state_dict()})
    runtime.save(work / "language.pt", {"model": LanguagePhaseModel().state_dict()})
    export(work, work / "model")
    return work / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> LlavaForConditionalGeneration:
    return evaluate.load(folder)


def _messages(question: str, pictures: int) -> list[dict[str, object]]:
    parts: list[dict[str, str]] = [{"type": "text", "text": question}]
    return [{"role": "user", "content": [*parts, *({"type": "image"} for _ in range(pictures))]}]


def test_weights_are_bf16_and_under_twenty_megabytes(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size < 20e6
    assert '"dtype": "bfloat16"' in (folder / "config.json").read_text()


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_processor_expands_every_placeholder(folder: Path, pictures: int) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(_messages("Count the shapes.", pictures), add_generation_prompt=True)
    sizes = [(336, 336), (500, 400), (200, 900)][:pictures]
    inputs = processor(text=text, images=[Image.new("RGB", size) for size in sizes], return_tensors="pt")
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert int((inputs["input_ids"] == image_id).sum()) == 576 * pictures
    assert inputs["pixel_values"].shape == (pictures, 3, 336, 336)


def test_chat_prompt_is_the_training_prompt(folder: Path) -> None:
    processor, packer = AutoProcessor.from_pretrained(folder), Packer(build())
    text = processor.apply_chat_template(_messages("Read the number.", 2), add_generation_prompt=True)
    images = [Image.new("RGB", (336, 336))] * 2
    inputs = processor(text=text, images=images, return_tensors="pt")
    expected = [*packer.prefix([576, 576]), *packer.encode("Read the number."), packer.assistant]
    assert inputs["input_ids"][0].tolist() == expected


def test_stock_generate_agrees_with_the_trainers_forward_pass(
    folder: Path, model: LlavaForConditionalGeneration
) -> None:
    processor, packer = AutoProcessor.from_pretrained(folder), Packer(build())
    example = next(scenes.examples(1, 1, ["count"]))
    text = processor.apply_chat_template(_messages(example.question, 1), add_generation_prompt=True)
    inputs = processor(text=text, images=example.pictures, return_tensors="pt")
    stock = model.float()(**inputs.to(torch.float32)).logits[0, -1]

    trained = LanguagePhaseModel().float()
    trained.projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    trained.llama.model.load_state_dict(model.model.language_model.state_dict())
    trained.llama.lm_head.load_state_dict(model.lm_head.state_dict())
    pixels = pixels_of([np.asarray(example.pictures[0])])
    tower = VisionTower()
    tower.clip.load_state_dict(model.model.vision_tower.state_dict(), strict=False)
    maps = tower(pixels).float()
    packed = packer.pack([[scenes.Question("count", example.question, example.answer)]], [576])
    logits, _ = trained([maps], packed._replace(mask=packed.mask.float()), packer.image)
    model.to(torch.bfloat16)
    assert int((packed.targets != IGNORED).sum()) == len(logits)
    torch.testing.assert_close(logits[0], stock, rtol=0.1, atol=0.05)


def test_generation_ends(folder: Path, model: LlavaForConditionalGeneration) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(_messages("Is there a defect?", 1), add_generation_prompt=True)
    picture = scenes.scene("held-out", Random(0).randint(0, 9)).picture
    inputs = processor(text=text, images=[picture], return_tensors="pt").to(torch.bfloat16)
    assert model.generate(**inputs).shape[1] <= inputs["input_ids"].shape[1] + 16
