"""DFMR over time and space: a video's feature maps in, as many visual tokens out as each of its scenes is worth.

A video is a tensor V of shape (T, H, W, D): frames, rows, columns, channels. It is cut where consecutive frames differ:

    d_f = |V_f - V_(f-1)|^2 / (|V_f - m|^2 + |V_(f-1) - m|^2)      0 <= d_f <= 2

with m the mean per channel over the cells of both frames and |.| the Euclidean norm over cells and channels. d is one
minus the correlation of the two maps about their common mean: 0 for equal frames, about 1 for unrelated ones. Being a
ratio, it carries over from one encoder to another, which a distance in units of the features would not. But where
there is little in a picture, as on a blank wall, noise alone makes frames unrelated. So what the two frames differ by
has to matter as well: averaging them has to cost enough, the cost being the score of a window of both frames and one
cell, the mean over cells and channels of |V_f - V_(f-1)| / 2.

Inside a scene, windows of t frames, s rows and s columns take the place of the s x s windows of
`dfmr_kernels.reference`: frames from the scene's first, windows cut off by the last frame or by an edge averaged over
what they have. With n_k the elements of window W_k,

    mu_k(d)    = 1/n_k * sum over (f, u, v) in W_k of V(f, u, v, d)
    sigma_k(d) = sqrt(1/n_k * sum over (f, u, v) in W_k of (V(f, u, v, d) - mu_k(d))^2)
    sigma_k    = mean over channels d of sigma_k(d)

The score at (t, s) is an aggregate over the sigma_k (`dfmr_kernels.scores`), each taken once for every frame that its
window holds: a scene has few windows over time, and a last one of a single frame must not halve the score. What is
kept are the mu_k. With one frame this is the picture's DFMR. The extension to time is this project's own.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from dfmr_kernels.decide import Grid, tokens_after
from dfmr_kernels.reference import segment_mean, window_mean, window_moments
from dfmr_kernels.scores import aggregate_by_name


class Window(NamedTuple):
    """A candidate: how many frames, and how many rows and columns of the map, become one visual token.

    Attributes:
        t: frames.
        s: rows and columns; the picture's pooling factor.
    """

    t: int
    s: int


class Scene(NamedTuple):
    """Frames ``start`` to ``stop``, without ``stop``."""

    start: int
    stop: int

    @property
    def frames(self) -> int:
        return self.stop - self.start


class Step(NamedTuple):
    """How a frame differs from the one before it.

    Attributes:
        distance: d of the module's formula, between 0 and 2.
        cost: what averaging the two loses, in the unit of the features.
    """

    distance: float
    cost: float


def steps_of(video: Tensor) -> list[Step]:
    """How much each frame but the first differs from the one before it.

    Args:
        video: (T, H, W, D) frames, rows, columns, channels; T >= 1.

    Returns:
        one step for each of the frames 1 .. T - 1; the distance is 0 where they are equal.
    """
    # |V_f - m|^2 = |V_f - m_f|^2 + H*W * |m_f - m|^2, so that each frame's own spread is summed once.
    found: list[Step] = []
    before, centre, spread = _spread(video[0])
    for frame in video[1:]:
        after, next_centre, next_spread = _spread(frame)
        change = (after - before).abs_()
        cost = float(change.mean()) / 2
        moved = float(change.square_().sum())
        apart = float((next_centre - centre).square().sum()) * len(after) / 2
        found.append(Step(moved / (spread + next_spread + apart) if moved > 0 else 0.0, cost))
        before, centre, spread = after, next_centre, next_spread
    return found


def cut(steps: Sequence[Step], threshold: float, least: float = 0.0) -> list[Scene]:
    """The scenes of a video.

    Args:
        steps: T - 1 of them, as `steps_of` returns them.
        threshold: a scene ends before a frame whose distance is above this,
        least: and whose cost is not under this.

    Returns:
        scenes that follow each other and hold all T frames.
    """
    differ = (frame for frame, step in enumerate(steps, 1) if step.distance > threshold and step.cost >= least)
    starts = [0, *differ]
    return [Scene(start, stop) for start, stop in zip(starts, [*starts[1:], len(steps) + 1], strict=True)]


def time_windows(frames: int) -> tuple[int, ...]:
    """Candidate window lengths for a scene, ascending: those that cut it into 1, 2, 4, ... windows evenly, and 1.

    ``(1, 2, 3, 5, 9)`` for 9 frames.
    """
    return tuple(sorted({1, *(-(-frames // (1 << k)) for k in range(frames.bit_length()))}))


def tokens_of(frames: int, grid: Grid, window: Window) -> int:
    """Visual tokens that a scene keeps at a candidate: ceil(frames/t) * ceil(H/s) * ceil(W/s)."""
    return -(-frames // window.t) * tokens_after(grid, window.s)


def measure(scene: Tensor, candidates: Sequence[int], aggregate: str = "mean") -> dict[Window, float]:
    """The score at every window length of `time_windows` and every pooling factor.

    The variance in a window is the mean over its frames of the variance in each, plus the variance over its frames of
    their means (all of a window's frames have as many elements of it). So each frame is read once per factor, whatever
    the window lengths, and nothing is lost to cancellation.

    Args:
        scene: (n, H, W, D) finite features of one scene's frames; float32, bfloat16 or float16.
        candidates: distinct pooling factors s >= 1.
        aggregate: name of the aggregate over windows.

    Returns:
        (t, s) -> score, in the unit of the features; 0 at (1, 1). Sums are taken in float32.

    Raises:
        ValueError: the aggregate is unknown.
    """
    score = aggregate_by_name(aggregate)
    lengths = time_windows(len(scene))
    scores: dict[Window, float] = {}
    for s in candidates:
        means, variances = _per_frame(scene, s)
        for t in lengths:
            sigma = _sigma(means, variances, t)
            of_frames = sigma.repeat_interleave(t, 0)[: len(scene)]
            scores[Window(t, s)] = float(score(of_frames.flatten(0, 1)[None]))
    return scores


def pool(scene: Tensor, window: Window) -> Tensor:
    """Window means (ceil(n/t), ceil(H/s), ceil(W/s), D) of a scene (n, H, W, D), in its dtype."""
    if window == (1, 1):
        return scene
    origin = scene[:1, :1, :1].float()
    pooled = torch.stack([window_mean(frame.float() - origin[0], window.s) for frame in scene])
    first = pooled[:1]
    return (segment_mean(pooled - first, window.t) + first + origin).to(scene.dtype)


def limits(
    row: Sequence[float],
    candidates: Sequence[int],
    frames: int,
    tau: float | Mapping[int, float],
) -> dict[Window, float]:
    """What each candidate's score has to stay under for a scene to be pooled by it.

    At t = 1 that is the picture's own threshold. Longer windows are allowed with the factors that a picture is allowed,
    never for free: under tau of the factor, and at s = 1, for which there is none, under that of the smallest other.

    Args:
        row: a picture's thresholds, one per candidate factor, as `dfmr_kernels.decide.thresholds` makes them.
        candidates: the pooling factors.
        frames: frames of the scene.
        tau: the policy's threshold: one for all factors, or one for each factor above 1.

    Returns:
        (t, s) -> threshold; -inf for a candidate that may not be chosen, +inf for one that always may.
    """
    found: dict[Window, float] = {}
    for s, limit in zip(candidates, row, strict=True):
        longer = -inf if limit == -inf else tau_of(s, candidates, tau)
        for t in time_windows(frames):
            found[Window(t, s)] = limit if t == 1 else longer
    return found


def decide(scores: Mapping[Window, float], thresholds: Mapping[Window, float], frames: int, grid: Grid) -> Window:
    """The candidate that keeps the fewest tokens among those whose score lies below its threshold.

    Of several that keep as many tokens, the one with the lowest score, and then with the shortest window, so that the
    least is lost. (1, 1) where none passes.

    Args:
        scores: (t, s) -> score. NaN passes no finite threshold.
        thresholds: (t, s) -> threshold, for the same candidates; +inf lets every score pass.
        frames: frames of the scene.
        grid: rows and columns of a frame's map.
    """
    passing = [w for w, limit in thresholds.items() if limit == inf or scores[w] < limit]
    return min(passing, key=lambda w: (tokens_of(frames, grid, w), scores[w], w), default=Window(1, 1))


def _spread(frame: Tensor) -> tuple[Tensor, Tensor, float]:
    """Cells (H*W, D) of a map in float32, their mean (D,), and the sum of their squared distances from it."""
    cells = frame.flatten(0, 1).float()
    centre = cells.mean(0)
    return cells, centre, float((cells - centre).square_().sum())


def tau_of(s: int, candidates: Sequence[int], tau: float | Mapping[int, float]) -> float:
    """What windows of several frames and s rows and columns have to stay under: see `limits`."""
    if not isinstance(tau, Mapping):
        return tau
    smallest = min((c for c in candidates if c > 1 and c in tau), default=1)
    return tau.get(s if s > 1 else smallest, -inf)


def _per_frame(scene: Tensor, s: int) -> tuple[Tensor, Tensor | None]:
    """Window means and variances (n, h, w, D) of each frame; no variances at s = 1.

    Means are told as differences from the first frame's, so that a scene that stands still comes out as exactly 0.
    """
    if s == 1:
        return scene.float() - scene[:1].float(), None
    origin = scene[0, :1, :1].float()
    means: list[Tensor] = []
    variances: list[Tensor] = []
    for frame in scene:
        centred = frame.float() - origin
        mean, variance = window_moments(centred, s)
        means.append(mean)
        variances.append(variance)
    return torch.stack(means) - means[0], torch.stack(variances)


def _sigma(means: Tensor, variances: Tensor | None, t: int) -> Tensor:
    """Sigma map (ceil(n/t), h, w) of windows of t frames, from each frame's means and variances (n, h, w, D)."""
    if t == 1:
        return means.new_zeros(means.shape[:3]) if variances is None else variances.sqrt().mean(-1)
    centre = segment_mean(means, t).repeat_interleave(t, 0)[: len(means)]
    variance = segment_mean(centre.sub_(means).square_(), t)
    if variances is not None:
        variance += segment_mean(variances, t)
    return variance.sqrt_().mean(-1)
