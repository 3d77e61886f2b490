"""A picture's content: the same whether it comes as a file, an array or a tensor."""

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm.multimodal.media import MediaWithBytes


def content_key(image: Any) -> bytes:
    """Identity of a picture's content: of its file's bytes where they are known, else of its pixels."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(image, MediaWithBytes):
        digest.update(repr(image.io_config).encode())
        digest.update(image.original_bytes)
    else:
        picture = as_pil(image)
        digest.update(f"{picture.mode} {picture.size}".encode())
        digest.update(repr(picture.getpalette("RGB") if picture.mode in ("P", "PA") else None).encode())
        digest.update(picture.tobytes())
    return digest.digest()


def as_pil(image: Any) -> Image.Image:
    """A picture as vLLM hands it over, or as offline callers may pass it, as a PIL image.

    Args:
        image: a PIL image; one with its file's bytes; or a uint8 array or tensor ``(rows, columns, channels)``.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(image, MediaWithBytes):
        image = image.media
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a picture, got {type(image).__name__}")
    return image
