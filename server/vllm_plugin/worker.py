"""The GPU worker's side of phase one: vision tower and DFMR on the engine's own weights, between two engine steps.

Arguments and results cross processes as bytes, numbers and lists: tensors do not survive vLLM's untyped RPC. Nothing is
kept here, so there is nothing to leak when a request goes away.
"""

import traceback
import zlib
from typing import Any

import torch
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank

from dfmr_kernels import reduce
from dfmr_kernels.controls import Method, drop


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
        thresholds: list[list[float]],
        aggregate: str,
        metric: str,
        methods: list[Method],
    ) -> list[dict[str, Any]] | None:
        """Encode and pool a batch of pictures.

        Args:
            pixels: uint8, row-major, of ``shape`` (pictures, 3, height, width).
            normalise: ``[[scale], mean, std]``; the tower is fed ``(pixel * scale - mean) / std``.
            candidates: pooling factors to measure.
            thresholds: per picture, one number per candidate.
            aggregate: how window values become a score, by name.
            metric: what is measured inside each window, by name.
            methods: per picture, how its tokens become fewer.

        Returns:
            per picture ``{features, dtype, grid, factor, scores}`` or ``{error}``; None on ranks that do not answer.
        """
        if not get_pp_group().is_first_rank:
            return None
        raw = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(shape)
        try:
            results = self._encode(raw, normalise, candidates, thresholds, aggregate, metric, methods)
        except Exception as error:
            results = self._encode_singly(raw, normalise, candidates, thresholds, aggregate, metric, methods, error)
        return results if get_tensor_model_parallel_rank() == 0 else None

    def _encode_singly(
        self,
        raw: torch.Tensor,
        normalise: list[list[float]],
        candidates: list[int],
        thresholds: list[list[float]],
        aggregate: str,
        metric: str,
        methods: list[Method],
        error: Exception,
    ) -> list[dict[str, Any]]:
        """After a batch failed: find out which picture is to blame, so that its batch mates are still served."""
        if len(raw) == 1:
            traceback.print_exception(error)
            return [{"error": f"{type(error).__name__}: {error}"}]
        results: list[dict[str, Any]] = []
        for picture, row, method in zip(raw.split(1), thresholds, methods, strict=True):
            try:
                results += self._encode(picture, normalise, candidates, [row], aggregate, metric, [method])
            except Exception as one:
                results += self._encode_singly(picture, normalise, candidates, [row], aggregate, metric, [method], one)
        return results

    @torch.inference_mode()
    def _encode(
        self,
        raw: torch.Tensor,
        normalise: list[list[float]],
        candidates: list[int],
        thresholds: list[list[float]],
        aggregate: str,
        metric: str,
        methods: list[Method],
    ) -> list[dict[str, Any]]:
        (scale,), mean, std = normalise
        per_channel = torch.tensor([mean, std], device=self.device).view(2, 1, 3, 1, 1)
        seen = raw.to(self.device)
        inputs = (seen.float() * scale - per_channel[0]) / per_channel[1]
        model = self.get_model()
        controls = any(method != "dfmr" for method in methods)
        maps, cls = model.encode_with_cls(inputs) if controls else (model.encode_pictures(inputs), None)
        reduction = reduce(maps, candidates, thresholds, aggregate, metric, seen)
        packed = reduction.features.cpu()
        dtype = str(packed.dtype).removeprefix("torch.")
        results: list[dict[str, Any]] = []
        start = 0
        chosen = zip(reduction.grids, reduction.factors, reduction.scores.tolist(), reduction.finite, strict=True)
        for index, (grid, factor, scores, finite) in enumerate(chosen):
            if not finite:
                results.append({"error": "nonfinite"})
                continue
            features = packed[start : start + grid[0] * grid[1]]
            start += len(features)
            if (method := methods[index]) != "dfmr":
                if method == "drop-cls" and cls is None:
                    results.append({"error": "no CLS"})
                    continue
                seed = zlib.crc32(raw[index].numpy().tobytes())
                token = None if cls is None else cls[index]
                features = drop(maps[index], len(features), method, token, seed).cpu()
            results.append(
                {
                    "features": features.contiguous().view(torch.uint8).numpy().tobytes(),
                    "dtype": dtype,
                    "grid": list(grid),
                    "factor": factor,
                    "scores": scores,
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
