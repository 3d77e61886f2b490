"""From a measured batch to the tokens that are kept, whole pictures or regions, with one wait for the device."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfmr_kernels.choices import Choice, layout, options, split_windows
from dfmr_kernels.reference import Pyramid
from dfmr_kernels.regions import Layout, pool, whole
from dfmr_kernels.scores import aggregate_by_name


class Selected(NamedTuple):
    """One picture of a batch.

    Attributes:
        scores: one for each candidate in their order; the aggregate over the whole picture.
        windows: (n,) float32 on the CPU, the window values at every candidate, one map after another.
        layouts: what was kept, in the order in which its tokens follow each other.
    """

    scores: tuple[float, ...]
    windows: Tensor
    layouts: tuple[Layout, ...]


class Selection(NamedTuple):
    """A batch after selection.

    Attributes:
        features: (total_tokens, D) kept tokens, picture after picture; dtype and device of the maps.
        pictures: one for each picture; None for one that is not finite, which has no tokens.
    """

    features: Tensor
    pictures: list[Selected | None]


@torch.no_grad()
def select(
    measured: Pyramid,
    candidates: Sequence[int],
    choices: Sequence[Choice],
    levels: Sequence[bool],
    aggregate: str = "mean",
) -> Selection:
    """Decide on every picture of a batch and pack what is kept.

    A picture's decision and values do not depend, to the bit, on the others in its batch.

    Args:
        measured: pooled maps and window values of B pictures at every candidate.
        candidates: distinct pooling factors with 1 among them.
        choices: B, how each picture may be pooled.
        levels: B, whether to keep a picture's whole map at every factor that its parts may still be pooled by, for a
            decision that is taken elsewhere, instead of the decided tokens.
        aggregate: how window values become a score, by its name in `scores.AGGREGATES`.

    Raises:
        ValueError: an unknown aggregate, or a limit below a picture's fewest tokens.
    """
    score = aggregate_by_name(aggregate)
    candidates = tuple(candidates)
    _, height, width, channels = measured.maps[1].shape
    grid = height, width
    flat = [measured.sigmas[s].flatten(1) for s in candidates]
    packed = torch.cat([measured.finite[:, None].float(), *flat], 1).cpu()
    finite = (packed[:, 0] > 0) & packed.isfinite().all(1)
    pictures: list[Selected | None] = []
    kept = [measured.maps[1].new_empty(0, channels)]
    for index, ok in enumerate(finite.tolist()):
        if not ok:
            pictures.append(None)
            continue
        values = packed[index, 1:].clone()
        windows = split_windows(values, grid, candidates)
        scores = tuple(float(score(windows[s][None])[0]) for s in candidates)
        found = options(choices[index], grid, candidates, scores, windows, score)
        if levels[index]:
            wanted = found.open.any(0) | ((np.array(candidates) == 1) & (choices[index].protected is not None))
            layouts = tuple(whole(s) for s, one in zip(candidates, wanted, strict=True) if one)
        else:
            layouts = (layout(choices[index], grid, candidates, found.chosen),)
        maps = {s: measured.maps[s][index] for s in {s for one in layouts for s in one.factors}}
        kept += [pool(maps, grid, one) for one in layouts]
        pictures.append(Selected(scores, values, layouts))
    return Selection(torch.cat(kept), pictures)
