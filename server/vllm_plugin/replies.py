"""What the worker answers to an encode call, as the API process uses it."""

from collections.abc import Sequence
from typing import Any

import torch

from dfmr_kernels.regions import Layout, tokens_of
from server.encoding.decisions import features_of
from server.encoding.jobs import EncodeResult
from server.errors import EncodeFailedError, PictureError


def results_of(replies: Sequence[list[dict[str, Any]] | None], grid: tuple[int, int]) -> list[EncodeResult | Exception]:
    """The answer of the one rank that gives one."""
    (reply,) = [r for r in replies if r is not None]
    return [_result(one, grid) for one in reply]


def _result(reply: dict[str, Any], grid: tuple[int, int]) -> EncodeResult | Exception:
    if error := reply.get("error"):
        if error == "nonfinite":
            return PictureError(
                None, "nonfinite", "the vision tower or the metric made values of it that are not finite numbers"
            )
        if error == "no CLS":
            return PictureError(
                None, "policy", "dfmr.method drop-cls: the vision encoder of this model has no CLS token"
            )
        return EncodeFailedError(error)
    tensor = torch.frombuffer(bytearray(reply["features"]), dtype=getattr(torch, reply["dtype"]))
    layouts = [Layout(block, tuple(factors)) for block, factors in reply["layouts"]]
    counts = [tokens_of(grid, layout) for layout in layouts]
    parts = tensor.view(sum(counts), -1).split(counts)
    pieces = tuple(features_of(part, grid, layout) for part, layout in zip(parts, layouts, strict=True))
    windows = torch.frombuffer(bytearray(reply["windows"]), dtype=torch.float32)
    return EncodeResult(tuple(reply["scores"]), windows, pieces)
