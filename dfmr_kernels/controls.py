"""What DFMR is compared with at equal tokens: dropping tokens instead of averaging them.

These are controls for evaluations, not ways to serve: the tokens that are dropped are lost.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Method = Literal["dfmr", "drop-cls", "drop-random"]
METHODS: tuple[Method, ...] = get_args(Method)


def drop(features: Tensor, count: int, method: Method, cls: Tensor | None, seed: int) -> Tensor:
    """Keep some tokens of one picture's feature map as they are, and drop the others.

    ``drop-cls`` keeps those whose cosine similarity to the CLS token is highest, ties going to the earlier token;
    ``drop-random`` keeps a uniform sample without replacement, the same for the same seed and size.

    Args:
        features: (H, W, D) rows, columns, channels.
        count: tokens to keep, at least 1 and at most H * W.
        method: one of `METHODS` except ``dfmr``.
        cls: (D,) the CLS token of the same layer; needed by ``drop-cls``.
        seed: of ``drop-random``.

    Returns:
        (count, D) kept tokens in row-major order, dtype and device of the input.

    Raises:
        ValueError: another method, a count out of range, or ``drop-cls`` without a CLS token.
    """
    tokens = features.flatten(0, 1)
    if not 1 <= count <= len(tokens):
        raise ValueError(f"cannot keep {count} of {len(tokens)} tokens")
    if method == "drop-cls":
        if cls is None:
            raise ValueError("drop-cls needs the encoder's CLS token")
        similarity = torch.cosine_similarity(tokens.float(), cls.float()[None], dim=1)
        order = similarity.argsort(descending=True, stable=True)
    elif method == "drop-random":
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed)).to(tokens.device)
    else:
        raise ValueError(f"{method!r} drops no tokens")
    return tokens[order[:count].sort().values]
