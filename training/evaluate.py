"""Exact-match accuracy by kind of question and pooling factor, on held-out pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from training import scenes
from training.language_phase import exact
from training.packing import IGNORED, Packer
from training.scenes import Question
from training.tokenizer import build
from training.vision_phase import pixels_of, pool
from training.visual import feature_maps

BLIND = 0
"""In place of a factor: the question alone, without its pictures."""

Accuracies = dict[str, dict[int, float]]


def load(folder: Path) -> LlavaForConditionalGeneration:
    """The exported model, in bf16, for evaluation."""
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    return model.eval()


@torch.no_grad()
def answered(
    model: LlavaForConditionalGeneration, packer: Packer, asked: list[list[Question]], maps: Tensor, s: int
) -> list[list[bool]]:
    """Per sample and question, whether it is answered exactly; maps: (samples, pictures, 24, 24, hidden)."""
    pooled = [] if s == BLIND else [pool(maps[:, index], s) for index in range(maps.shape[1])]
    packed = packer.pack(asked, [each.shape[1] * each.shape[2] for each in pooled])
    embedded = model.get_input_embeddings()(packed.ids)
    if pooled:
        visual = model.model.multi_modal_projector(torch.cat([each.flatten(1, 2) for each in pooled], 1))
        embedded = embedded.masked_scatter((packed.ids == packer.image)[..., None], visual)
    hidden = model.model.language_model(
        inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    return exact(model.lm_head(hidden[packed.targets != IGNORED]), packed)


def evaluate(
    model: LlavaForConditionalGeneration, seed: int, per_kind: int, factors: Sequence[int], batch: int = 16
) -> Accuracies:
    """Accuracy by kind and factor (``BLIND`` = 0: without pictures) over ``per_kind`` held-out questions of each kind.

    An answer counts when every one of its tokens, and the end, is the likeliest given those before it, which is when
    greedy decoding would give exactly it.
    """
    packer, accuracies = Packer(build()), Accuracies()
    for kind in scenes.KINDS:
        found = list(scenes.examples(seed, per_kind, [kind]))
        right = dict.fromkeys(factors, 0)
        for start in range(0, per_kind, batch):
            part = found[start : start + batch]
            pictures = [np.asarray(picture) for example in part for picture in example.pictures]
            maps = feature_maps(model, pixels_of(pictures)).unflatten(0, (len(part), -1))
            asked = [[Question(example.kind, example.question, example.answer)] for example in part]
            for factor in factors:
                right[factor] += sum(result for row in answered(model, packer, asked, maps, factor) for result in row)
        accuracies[kind] = {factor: count / per_kind for factor, count in right.items()}
    return accuracies


def table(accuracies: Accuracies) -> str:
    """The accuracies as a Markdown table."""
    factors = list(next(iter(accuracies.values())))
    names = ["blind" if factor == BLIND else f"s={factor}" for factor in factors]
    lines = ["| Kind | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for kind, row in accuracies.items():
        lines.append(f"| {kind} | " + " | ".join(f"{row[factor]:.2f}" for factor in factors) + " |")
    return "\n".join(lines)


def write_csv(path: Path, accuracies: Accuracies) -> None:
    """The accuracies as rows of kind, factor (0: blind), accuracy."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "factor", "accuracy"])
        writer.writerows([kind, factor, value] for kind, row in accuracies.items() for factor, value in row.items())
