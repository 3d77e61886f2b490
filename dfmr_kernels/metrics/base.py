"""What a metric is: a measure of what averaging hides in each window, for one picture at every pooling factor.

A metric sees one picture at a time, so that what it says of a picture cannot depend on the others in a batch, not even
in the last bit. How windows then add up to a score is the aggregate's business (`scores.py`).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


class MetricInput(NamedTuple):
    """One picture, and what has been computed of it anyway. All tensors are on one device, and none may be changed.

    Attributes:
        features: (H, W, D) rows, columns, channels of the vision encoder's map; float32, bfloat16 or float16.
        factors: the candidate pooling factors above 1, distinct, in any order.
        sigmas: s -> (ceil(H/s), ceil(W/s)) float32, the paper's sigma map at every factor, in the unit of the features.
        maps: s -> (ceil(H/s), ceil(W/s), D) window means at every factor, in the features' dtype.
        pixels: (3, h, w) uint8 RGB, what the encoder was given before normalisation. Token (i, j) saw the square of
            h // H by w // W pixels that starts at (i * (h // H), j * (w // W)). None where the caller has none.
    """

    features: Tensor
    factors: tuple[int, ...]
    sigmas: Mapping[int, Tensor]
    maps: Mapping[int, Tensor]
    pixels: Tensor | None

    def seen_pixels(self) -> tuple[Tensor, tuple[int, int]]:
        """The pixels that belong to a token, (3, H * rows, W * columns) uint8, and (rows, columns) of a token's patch.

        Raises:
            ValueError: there are no pixels, or fewer than tokens.
        """
        if self.pixels is None:
            raise ValueError("this metric looks at pixels, and none were passed")
        height, width, _ = self.features.shape
        rows, columns = self.pixels.shape[1] // height, self.pixels.shape[2] // width
        if not rows or not columns:
            size = tuple(self.pixels.shape[1:])
            raise ValueError(f"a picture of {size} pixels cannot have made a map of {(height, width)} tokens")
        return self.pixels[:, : height * rows, : width * columns], (rows, columns)


Metric = Callable[[MetricInput], Mapping[int, Tensor]]
"""From a picture to its window maps: s -> (ceil(H/s), ceil(W/s)) float32, >= 0, for each of `MetricInput.factors`.

Windows are those of `reference.py`: s x s tokens, row-major from the top left, cut off at the right and bottom edge.
More means that pooling the window loses more. It must be deterministic and, on CUDA, must not wait for the device.
"""
