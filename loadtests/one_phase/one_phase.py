"""The baseline: stock vLLM serving the same checkpoint in one phase.

vLLM's own LLaVA class needs torchvision, which does not load beside a CPU build of torch. This plugin registers our
model class instead, and has processes wait for messages as our server does. Renderer, preprocessing, routes, processor
cache and worker are vLLM's own, and pictures arrive in `embed_multimodal` as ``pixel_values``, every token kept. It is
found by its entry point when this folder is on ``PYTHONPATH``, and loaded when ``VLLM_PLUGINS=one_phase`` says so.
"""


def register() -> None:
    """Put the model class into vLLM's registry, under the name that checkpoints ask for."""
    from vllm.model_executor.models import ModelRegistry

    from server.vllm_plugin.waiting import sleep_between_looks

    ModelRegistry.register_model(
        "LlavaForConditionalGeneration", "server.vllm_plugin.model:DfmrLlavaForConditionalGeneration"
    )
    sleep_between_looks()
