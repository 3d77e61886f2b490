"""What runs inside vLLM, one file per extension point. `register` is the ``vllm.general_plugins`` entry point."""

ARCHITECTURE = "LlavaForConditionalGeneration"


def register() -> None:
    """Put our classes into vLLM's registries.

    vLLM calls this in every process (API server, engine core, workers, model inspection), sometimes more than once, so
    it stores names and how to wait. The renderer behaves as upstream's for every model that is not ours.
    """
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY

    from server.vllm_plugin.config import DfmrModelConfig
    from server.vllm_plugin.waiting import sleep_between_looks

    ModelRegistry.register_model(ARCHITECTURE, "server.vllm_plugin.model:DfmrLlavaForConditionalGeneration")
    MODELS_CONFIG_MAP[ARCHITECTURE] = DfmrModelConfig
    RENDERER_REGISTRY.renderers["hf"] = ("server.vllm_plugin.renderer", "DfmrRenderer")
    sleep_between_looks()
