"""What is measured inside each window, by name: the first half of a picture's score. The second is `scores.py`."""

from dfmr_kernels.metrics.base import Metric, MetricInput
from dfmr_kernels.metrics.registry import METRICS, metric_by_name, metric_names, window_maps

__all__ = ["METRICS", "Metric", "MetricInput", "metric_by_name", "metric_names", "window_maps"]
