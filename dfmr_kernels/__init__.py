"""The compressor: feature maps of a vision encoder in, as many visual tokens out as each picture is worth.

Dynamic Feature Map Reduction (DFMR), as reconstructed here from Wang & Xuan, arXiv 2412.08771. Tensors in, tensors
out; needs torch, and triton only for CUDA tensors.
"""

from dfmr_kernels.choices import Choice
from dfmr_kernels.decide import Grid, decide, grid_after, thresholds, tokens_after
from dfmr_kernels.metrics import METRICS
from dfmr_kernels.reduce import Reduction, measure, pyramid, reduce
from dfmr_kernels.reference import Pyramid
from dfmr_kernels.regions import Layout
from dfmr_kernels.scores import AGGREGATES
from dfmr_kernels.select import Selection, select

__all__ = [
    "AGGREGATES",
    "METRICS",
    "Choice",
    "Grid",
    "Layout",
    "Pyramid",
    "Reduction",
    "Selection",
    "decide",
    "grid_after",
    "measure",
    "pyramid",
    "reduce",
    "select",
    "thresholds",
    "tokens_after",
]
