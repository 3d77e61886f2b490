"""From checkpoints to a Hugging Face folder that transformers and vLLM load unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from training import card, language_phase, runtime, vision_phase
from training.canvas import CELL, GRID
from training.tokenizer import IMAGE, build

RENAMED = {
    "clip.": "model.vision_tower.",
    "projector.": "model.multi_modal_projector.",
    "llama.model.": "model.language_model.",
    "llama.lm_head.": "lm_head.",
}
"""Beginnings of weights' names: in the two phases, and in the written model."""


def llava_config(image_id: int, size: language_phase.Size) -> LlavaConfig:
    """LLaVA-1.5's configuration at this size: features of layer -2, CLS dropped, 576 tokens a picture.

    The tower gets one layer more than was trained, since layer -2 is the output of the last trained one; nothing
    reads the layer behind it.
    """
    return LlavaConfig(
        vision_config=vision_phase.vision_config(vision_phase.LAYERS + 1),
        text_config=language_phase.text_config(size),
        image_token_index=image_id,
        image_seq_length=GRID * GRID,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        multimodal_projector_bias=True,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype="bfloat16",
    )


def processor() -> LlavaProcessor:
    """CLIP's image processor and the tokenizer with its chat template."""
    side = GRID * CELL
    tokenizer = build()
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_convert_rgb=True
        ),
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def assemble(tower: dict[str, Tensor], language: dict[str, Tensor]) -> LlavaForConditionalGeneration:
    """The whole model, in bf16, from the weights of both phases."""
    shared = processor()
    layers = sum(name.endswith("q_proj.weight") for name in language)
    size = language_phase.Size(language["projector.linear_2.weight"].shape[0], layers)
    model = LlavaForConditionalGeneration(llava_config(shared.image_token_id, size)).to(torch.bfloat16).eval()
    renamed = {_exported(name): value for name, value in [*tower.items(), *language.items()]}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    behind = f"model.vision_tower.encoder.layers.{vision_phase.LAYERS}."
    unfilled = [name for name in missing if not name.startswith(behind)]
    if unexpected or unfilled:
        raise RuntimeError(f"checkpoint and model differ: unexpected {unexpected}, unfilled {unfilled}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(behind) and parameter.ndim == 2:
                parameter.zero_()
    return model


def restore(source: Path, work: Path, minutes: float) -> None:
    """Write checkpoints to ``work`` from an exported model, as after ``minutes`` of the language phase.

    The optimizers' moments and the float32 masters behind the bf16 weights are not in the model: they start anew.
    """
    state = restore_tower(source, work)
    language = language_phase.LanguagePhaseModel()
    language.load_state_dict({name: state[_exported(name)] for name in language.state_dict()})
    step, _ = card.last_steps(source / "training-log.csv")["language"]
    runtime.save(work / "language.pt", {"step": step, "seconds": 60 * minutes, "model": language.state_dict()})
    shutil.copyfile(source / "training-log.csv", work / "log.csv")


def restore_tower(source: Path, work: Path) -> dict[str, Tensor]:
    """Write the vision phase's checkpoint to ``work`` from an exported model; returns all of that model's weights."""
    state: dict[str, Tensor] = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    tower = vision_phase.VisionTower()
    tower.load_state_dict({name: state[_exported(name)] for name in tower.state_dict()})
    work.mkdir(parents=True, exist_ok=True)
    runtime.save(work / "vision.pt", {"tower": tower.state_dict()})
    return state


def _exported(name: str) -> str:
    """The name in the written model of a weight of either phase."""
    for ours, written in RENAMED.items():
        if name.startswith(ours):
            return written + name.removeprefix(ours)
    return name


def export(work: Path, target: Path) -> LlavaForConditionalGeneration:
    """Write the model of ``work``'s checkpoints, its tokenizer and processor to ``target``."""
    vision, language = runtime.load(work / "vision.pt"), runtime.load(work / "language.pt")
    if vision is None or language is None:
        raise FileNotFoundError(f"{work} lacks vision.pt or language.pt: train both phases first")
    model = assemble(vision["tower"], language["model"])
    model.generation_config.max_new_tokens = 16
    model.generation_config.do_sample = False
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)
    processor().save_pretrained(target)
    return model
