"""A multimodal inference server on vLLM that spends visual tokens where a picture carries information."""

__version__ = "0.1.0"
