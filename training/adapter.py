"""A LLaVA checkpoint whose projector and LoRA on the language model can be trained; the rest is frozen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from server.policy import UNTRAINED_TAU, Policy
from server.profiles.checkpoint import PROFILE_FILE, checkpoint_profile
from training.packing import IGNORED
from training.visual import feature_maps, kept_tokens


class Batch(NamedTuple):
    """What one forward pass reads.

    ids, mask, labels: (samples, tokens) int64, padded on the right; pixels: (pictures, 3, height, width) float32,
    normalised; factors: one a picture. Labels are those of the token itself, not of the next one.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    pixels: Tensor
    factors: list[int]


class Adapter:
    """``model`` is a PEFT model around the LLaVA; its parameters that require gradients are float32."""

    def __init__(self, source: str, rank: int, alpha: int, dropout: float, dtype: torch.dtype, device: str) -> None:
        """Load ``source``, a folder or a hub name, in ``dtype`` on ``device`` and put LoRA of ``rank`` on it.

        Raises:
            ValueError: it is not a LLaVA checkpoint.
        """
        config = AutoConfig.from_pretrained(source)
        if config.model_type != "llava":
            raise ValueError(
                f"{source} is a {config.model_type} checkpoint; only LlavaForConditionalGeneration is known"
            )
        self.source, self.written_dtype = source, config.dtype or torch.float32
        self.processor = AutoProcessor.from_pretrained(source)
        self.llava = LlavaForConditionalGeneration.from_pretrained(source, dtype=dtype).to(device)
        linear = [
            f"model.language_model.{name}"
            for name, module in self.llava.model.language_model.named_modules()
            if isinstance(module, nn.Linear)
        ]
        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=linear,
            modules_to_save=["multi_modal_projector"],
        )
        self.model: PeftModel = get_peft_model(self.llava, settings)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.image_id = int(self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token))
        self._autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == torch.bfloat16)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a picture's map before pooling."""
        vision = self.llava.config.vision_config
        side = vision.image_size // vision.patch_size
        return side, side

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy (answer tokens,) of the answers' tokens, and each one's sample (answer tokens,)."""
        logits, targets, sample = self.logits(batch)
        return nn.functional.cross_entropy(logits, targets, reduction="none"), sample

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (answer tokens, vocabulary) in float32, the tokens they should name, and each one's sample."""
        llava = self.llava
        device = llava.device
        ids, labels = batch.ids.to(device), batch.labels.to(device)
        with self._autocast:
            embedded = llava.get_input_embeddings()(ids)
            if batch.factors:
                kept = kept_tokens(feature_maps(llava, batch.pixels.to(device)), batch.factors)
                visual = llava.model.multi_modal_projector(torch.cat(kept)[None])[0]
                embedded = embedded.masked_scatter((ids == self.image_id)[..., None], visual.to(embedded.dtype))
            hidden = llava.model.language_model(
                inputs_embeds=embedded, attention_mask=batch.mask.to(device), use_cache=False
            ).last_hidden_state
            targets = labels[:, 1:]
            chosen = targets != IGNORED
            logits = llava.lm_head(hidden[:, :-1][chosen])
        return logits.float(), targets[chosen], chosen.nonzero()[:, 0]

    def merged(self) -> dict[str, Tensor]:
        """The checkpoint's own weights with what was learnt added to them, in its dtype.

        They are read again: those that training ran with may be rounded to another dtype.
        """
        weights: dict[str, Tensor] = {}
        adapted = {name: module for name, module in self.llava.named_modules() if isinstance(module, LoraLinear)}
        saved = ".modules_to_save.default."
        whole = {name.replace(saved, "."): v for name, v in self.llava.state_dict().items() if saved in name}
        source = LlavaForConditionalGeneration.from_pretrained(self.source, dtype=self.written_dtype)
        for name, value in source.state_dict().items():
            if name in whole:
                value = whole[name]
            elif name.endswith(".weight") and (layer := adapted.get(name.removesuffix(".weight"))) is not None:
                value = value.float() + layer.get_delta_weight("default").float().cpu()
            weights[name] = value.to("cpu", self.written_dtype if value.is_floating_point() else value.dtype)
        return weights

    def write(self, folder: Path, factors: list[int]) -> None:
        """Write the merged checkpoint, its processor and its profile to ``folder``."""
        with torch.device("meta"):
            plain = LlavaForConditionalGeneration(self.llava.config)
        plain.load_state_dict(self.merged(), assign=True)
        plain.tie_weights()
        plain.config.dtype = self.written_dtype
        plain.generation_config = self.llava.generation_config
        plain.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (folder / PROFILE_FILE).write_text(json.dumps(profile(self.source, factors), indent=2) + "\n")

    def write_adapter(self, folder: Path) -> None:
        """Write LoRA and projector alone, as PEFT does."""
        self.model.save_pretrained(str(folder))


def profile(source: str, factors: list[int]) -> dict[str, Any]:
    """``dfmr_profile.json`` for a checkpoint adapted from ``source`` to these factors.

    Its threshold is the source's own, since the tower and so the scores are the same, or else the cautious one of a
    checkpoint without a profile. Neither was found for the new factors: ``dfmr-calibrate`` does that.
    """
    tau: Any = UNTRAINED_TAU
    kept: dict[str, Any] = {}
    if (profile := checkpoint_profile(str(source))) is not None:
        known = profile.policy
        tau = known.get("tau", tau)
        kept = {name: known[name] for name in ("metric", "aggregate") if name in known}
    if isinstance(tau, dict):
        tau = {s: value for s, value in tau.items() if int(s) in factors}
        if not {s for s in factors if s > 1} <= {int(s) for s in tau}:
            tau = UNTRAINED_TAU
    policy = {**kept, "tau": tau, "factors": sorted({1, *factors})}
    Policy.model_validate(policy)
    return {"policy": policy, "note": "adapted to these factors; tau is not calibrated for them: run dfmr-calibrate"}


def pad(rows: list[list[int]], filler: int) -> Tensor:
    """Rows of any length as (rows, longest) int64."""
    longest = math.ceil(max(map(len, rows)) / 8) * 8
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
