"""Adapting a checkpoint to pooled maps: what it reads, what it changes, what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from dfmr_kernels.reference import pyramid
from server.policy import UNTRAINED_TAU, load_settings
from server.standin import write_checkpoint
from training import llava_json
from training.adapt import Run, Settings
from training.adapter import Adapter, Batch, profile
from training.conversation import Encoder
from training.packing import IGNORED
from training.visual import feature_maps, kept_tokens


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standin")
    write_checkpoint(folder, image_size=70, dtype=torch.float32)
    return folder


def _talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(turns)]


@pytest.fixture(scope="module")
def settings(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data")
    for index in range(3):
        Image.effect_noise((90 + 40 * index, 80), 60.0).convert("RGB").save(folder / f"{index}.png")
    samples = [
        {"image": "0.png", "conversations": _talk("<image>\nHow many?", "three", "And now?", "four")},
        {"image": ["1.png", "2.png"], "conversations": _talk("<image>\n<image>\nWhich one?", "the second")},
        {"conversations": _talk("Say yes.", "yes")},
    ]
    (folder / "llava.json").write_text(json.dumps(samples))
    return Settings(
        str(source), str(folder / "llava.json"), str(folder), factors=(1, 2, 3), steps=4, batch=2, lora_rank=4,
        lora_rate=1e-2, projector_rate=1e-2, mixed=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run"), settings, resume=False)
    run.train(keep_every=2)
    run.adapter.write(run.out / "model", [1, 2, 3])
    return run


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    weights: dict[str, torch.Tensor] = model.state_dict()
    return weights


def _layers(weights: dict[str, torch.Tensor]) -> int:
    return sum(name.endswith("self_attn.q_proj.weight") and "language_model" in name for name in weights)


def test_a_run_logs_finite_losses_and_changes_projector_and_language_model_only(run: Run, source: Path) -> None:
    before, after = _weights(source), _weights(run.out / "model")
    assert before.keys() == after.keys()
    assert load_file(run.out / "model/model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == {"multi_modal_projector", "language_model"}
    assert len(changed) == 4 + 7 * _layers(before)
    assert "loss" in (run.out / "log.csv").read_text()
    assert (run.out / "step-2" / "model.safetensors").exists()


def test_the_written_model_answers_as_the_adapted_one_in_memory(run: Run, settings: Settings) -> None:
    written = LlavaForConditionalGeneration.from_pretrained(run.out / "model").eval()
    run.adapter.model.eval()
    processor = AutoProcessor.from_pretrained(run.out / "model")
    sample = llava_json.read(Path(settings.data), Path(settings.images))[1]
    encoded = Encoder(processor, 4096).encode(sample, [25, 25])
    pictures = [Image.open(path).convert("RGB") for path in sample.pictures]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    batch = Batch(
        *(torch.tensor([row]) for row in (encoded.ids, [1] * len(encoded.ids), encoded.labels)), pixels, [1, 1]
    )
    with torch.no_grad():
        ours, targets, _ = run.adapter.logits(batch)
        stock = written(input_ids=batch.ids, attention_mask=batch.mask, pixel_values=pixels).logits
    labels = batch.labels[:, 1:]
    torch.testing.assert_close(ours, stock[:, :-1][labels != IGNORED], rtol=1e-4, atol=1e-4)
    assert len(targets) > 1


def test_a_run_that_goes_on_ends_where_an_unbroken_one_does(run: Run, settings: Settings, tmp_path: Path) -> None:
    Run(tmp_path, settings, resume=False).train(until=2)
    with pytest.raises(ValueError, match="--resume"):
        Run(tmp_path, settings, resume=False)
    with pytest.raises(ValueError, match="differs in steps"):
        Run(tmp_path, settings._replace(steps=9), resume=True)
    second = Run(tmp_path, settings, resume=True)
    assert second.step == 2
    second.train()
    for name, value in second.adapter.trained().items():
        torch.testing.assert_close(value, run.adapter.trained()[name], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(settings: Settings, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        run = Run(tmp_path, settings, resume=False, checkpointing=checkpointing)
        run.adapter.model.train()
        losses, _ = run.adapter.losses(run.passes[0])
        losses.mean().backward()
        found.append([value.grad for value in run.adapter.trained().values()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_what_was_not_trained_is_written_as_it_was_whatever_training_ran_in(source: Path) -> None:
    merged = Adapter(str(source), 2, 4, 0.0, torch.bfloat16, "cpu").merged()
    original = LlavaForConditionalGeneration.from_pretrained(source, dtype="auto").state_dict()
    assert merged.keys() == original.keys()
    towers = [name for name in merged if "vision_tower" in name and name.endswith("fc1.weight")]
    assert towers
    for name in towers:
        assert torch.equal(merged[name], original[name]), name


def test_pooling_is_the_references(run: Run) -> None:
    maps = feature_maps(run.adapter.llava, torch.randn(3, 3, 70, 70))
    kept = kept_tokens(maps, [2, 1, 3])
    assert [len(tokens) for tokens in kept] == [9, 25, 4]
    for index, s in enumerate([2, 1, 3]):
        assert torch.equal(kept[index], pyramid(maps[index : index + 1], [s]).maps[s][0].flatten(0, 1))


def test_only_answers_are_learnt_and_the_last_one_ends(run: Run, settings: Settings) -> None:
    samples = llava_json.read(Path(settings.data), Path(settings.images))
    tokenizer = run.adapter.processor.tokenizer
    found = Encoder(run.adapter.processor, 4096).encode(samples[0], [9])
    learnt = [token for token in found.labels if token != IGNORED]
    assert tokenizer.decode(learnt) == "threefour</s>"
    assert found.ids.count(run.adapter.image_id) == 9
    with pytest.raises(ValueError, match="--max-length"):
        Encoder(run.adapter.processor, 20).encode(samples[1], [9, 9])


def test_the_profile_names_the_factors_and_stays_cautious(run: Run, source: Path, tmp_path: Path) -> None:
    settings, written = load_settings({}, str(run.out / "model"))
    assert written is not None
    assert settings.policy.factors == (1, 2, 3)
    assert profile(str(tmp_path), [2, 4])["policy"] == {"tau": UNTRAINED_TAU, "factors": [1, 2, 4]}
    assert profile(str(source), [1, 2, 8])["policy"]["tau"] == UNTRAINED_TAU


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("text", "expected an object"),
        ({"conversations": "hello"}, "must be a list of turns"),
        ({"conversations": _talk("only a question")}, "alternate"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "from 'robot'"),
        ({"image": "none.png", "conversations": _talk("<image>\nWhat?", "a")}, "no such picture: .*none.png"),
        ({"image": 3, "conversations": _talk("<image>\nWhat?", "a")}, "a path or a list of paths"),
        ({"id": 7, "image": "none.png", "conversations": _talk("What?", "a")}, "id 7.*1 pictures but 0 <image>"),
        ({"conversations": _talk("What?", " ")}, "an answer is empty"),
    ],
)
def test_bad_data_are_refused_with_the_sample_named(tmp_path: Path, entry: Any, complaint: str) -> None:
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([{"conversations": _talk("Hello", "there")}, entry]))
    with pytest.raises(ValueError, match=f"sample 1.*{complaint}"):
        llava_json.read(path, tmp_path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "llava.json").write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        llava_json.read(tmp_path / "llava.json", tmp_path)
