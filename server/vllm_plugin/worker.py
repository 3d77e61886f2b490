"""The GPU worker's side of phase one: vision tower and DFMR on the engine's own weights, between two engine steps.

Arguments and results cross processes as bytes, numbers and lists: tensors do not survive vLLM's untyped RPC. Nothing is
kept here, so there is nothing to leak when a request goes away.
"""

import os
import traceback
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import record_function
from vllm.distributed import (
    get_pp_group,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)

from dfmr_kernels import Choice, measure, select
from dfmr_kernels.controls import drop
from dfmr_kernels.regions import tokens_of


class DfmrWorkerExtension:
    """Mixed into vLLM's worker class; `get_model`, `model_runner` and `device` are the worker's."""

    get_model: Any
    model_runner: Any
    device: torch.device

    def dfmr_encode(
        self,
        pixels: bytes,
        shape: list[int],
        normalise: list[list[float]],
        candidates: list[int],
        aggregate: str,
        metric: str,
        jobs: list[dict[str, Any]],
    ) -> list[dict[str, Any]] | None:
        """Encode and pool a batch of pictures.

        Args:
            pixels: uint8, row-major, of ``shape`` (pictures, 3, height, width).
            normalise: ``[[scale], mean, std]``; the tower is fed ``(pixel * scale - mean) / std``.
            candidates: pooling factors to measure.
            aggregate: how window values become a score, by name.
            metric: what is measured inside each window, by name.
            jobs: per picture ``{choice, method, levels}``: the fields of a `Choice`, how its tokens become fewer, and
                whether to send its whole map at every factor that may still be chosen.

        Returns:
            per picture ``{features, dtype, layouts, scores, windows}``, with the tokens of all layouts one after
            another and float32 windows, or ``{error}``; None on ranks that do not answer.
        """
        if not get_pp_group().is_first_rank:
            return None
        raw = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(shape)
        encode = partial(self._encode, normalise, candidates, aggregate, metric)
        try:
            results = encode(raw, jobs)
        except Exception as error:
            _end_if_lost(self.device, error)
            if get_tensor_model_parallel_world_size() > 1:  # The others may have succeeded.
                traceback.print_exception(error)
                results = [_failed(error) for _ in jobs]
            else:
                results = _singly(encode, raw, jobs, error)
        return results if get_tensor_model_parallel_rank() == 0 else None

    @torch.inference_mode()
    def _encode(
        self,
        normalise: list[list[float]],
        candidates: list[int],
        aggregate: str,
        metric: str,
        raw: torch.Tensor,
        jobs: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        with record_function("dfmr: normalise"):
            seen = raw.to(self.device)
            inputs = normalised(seen, normalise)
        model = self.get_model()
        controls = any(job["method"] != "dfmr" for job in jobs)
        with record_function("dfmr: vision tower"):
            maps, cls = model.encode_with_cls(inputs) if controls else (model.encode_pictures(inputs), None)
        choices = [Choice(tuple(thresholds), *rest) for thresholds, *rest in (job["choice"] for job in jobs)]
        levels = [job["levels"] for job in jobs]
        with record_function("dfmr: measure"):
            measured = measure(maps, candidates, metric, seen)
        with record_function("dfmr: select"):
            selection = select(measured, candidates, choices, levels, aggregate)
            packed = selection.features.cpu()
        results: list[dict[str, Any]] = []
        start = 0
        for index, picture in enumerate(selection.pictures):
            if picture is None:
                results.append({"error": "nonfinite"})
                continue
            counts = [tokens_of((maps.shape[1], maps.shape[2]), layout) for layout in picture.layouts]
            features = packed[start : start + sum(counts)]
            start += len(features)
            if (method := jobs[index]["method"]) != "dfmr":
                if method == "drop-cls" and cls is None:
                    results.append({"error": "no CLS"})
                    continue
                seed = zlib.crc32(raw[index].numpy().tobytes())
                token = None if cls is None else cls[index]
                features = torch.cat([drop(maps[index], count, method, token, seed) for count in counts]).cpu()
            results.append(
                {
                    "features": features.contiguous().view(torch.uint8).numpy().tobytes(),
                    "dtype": str(packed.dtype).removeprefix("torch."),
                    "layouts": [[layout.block, list(layout.factors)] for layout in picture.layouts],
                    "scores": list(picture.scores),
                    "windows": picture.windows.numpy().tobytes(),
                }
            )
        return results

    def dfmr_kv_bytes_per_token(self) -> float:
        """Bytes of KV cache that one token takes on this rank, from the layout that vLLM allocated."""
        total = 0.0
        for group in self.model_runner.kv_cache_config.kv_cache_groups:
            spec = group.kv_cache_spec
            per_layer = getattr(spec, "kv_cache_specs", None) or dict.fromkeys(group.layer_names, spec)
            total += sum(layer.page_size_bytes / layer.block_size for layer in per_layer.values())
        return total


def normalised(pixels: torch.Tensor, constants: list[list[float]]) -> torch.Tensor:
    """What the vision tower is fed, ``(pixel * scale - mean) / std`` in float32.

    In place, as further tensors of a batch's size cost the CPU more in page faults than the arithmetic does.

    Args:
        pixels: ``(pictures, 3, height, width)`` uint8.
        constants: ``[[scale], mean, std]``.
    """
    (scale,), mean, std = constants
    per_channel = torch.tensor([mean, std], device=pixels.device).view(2, 1, 3, 1, 1)
    return pixels.float().mul_(scale).sub_(per_channel[0]).div_(per_channel[1])


def _failed(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}"}


def _end_if_lost(device: torch.device, error: Exception) -> None:
    """End the process if its GPU does not work any more, as after an illegal access: nothing but a new process helps.

    vLLM notices, as it does when a step fails, and the server ends. An encode's own failure leaves the engine alive.
    """
    if not isinstance(error, torch.AcceleratorError):
        return
    try:
        torch.ones(1, device=device).cpu()
    except torch.AcceleratorError:
        traceback.print_exception(error)
        os._exit(1)


def _singly(
    encode: Callable[[torch.Tensor, list[dict[str, Any]]], list[dict[str, Any]]],
    raw: torch.Tensor,
    jobs: list[dict[str, Any]],
    error: Exception,
) -> list[dict[str, Any]]:
    """After a batch failed: find out which picture is to blame, so that its batch mates are still served."""
    if len(raw) == 1:
        traceback.print_exception(error)
        return [_failed(error)]
    results: list[dict[str, Any]] = []
    for picture, job in zip(raw.split(1), jobs, strict=True):
        try:
            results += encode(picture, [job])
        except Exception as one:
            results += _singly(encode, picture, [job], one)
    return results
