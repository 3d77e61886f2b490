"""vLLM's hook for an architecture's configuration: refuses what cannot be served, and wires up the worker."""

import signal
import threading
from typing import TYPE_CHECKING, Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig

WORKER_EXTENSION = "server.vllm_plugin.worker.DfmrWorkerExtension"
SUPPORTED_TOWERS = ("clip_vision_model", "siglip_vision_model")


class DfmrModelConfig(VerifyAndUpdateConfig):
    """Runs once per engine, in the process that builds its configuration."""

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        """Set the worker extension, and leave caching of picture features to our own cache.

        vLLM's processor cache mirrors the API process's view of what the engine holds; features that are made after it
        looked would break that mirror.

        Raises:
            ValueError: the checkpoint or an option cannot be served; says what to change.
        """
        config = vllm_config.model_config.hf_config
        tower = config.vision_config.model_type
        if tower not in SUPPORTED_TOWERS:
            raise ValueError(
                f"dfmr serves LLaVA checkpoints with a CLIP or SigLIP tower, not {tower!r}; "
                "set VLLM_PLUGINS='' to serve this one with stock vLLM"
            )
        if not isinstance(config.vision_feature_layer, int):
            raise ValueError(f"dfmr needs one vision_feature_layer, not {config.vision_feature_layer}")
        strategy = config.vision_feature_select_strategy
        if strategy != ("default" if tower == "clip_vision_model" else "full"):
            raise ValueError(
                "dfmr pools a square map of patches: vision_feature_select_strategy must be 'default' with a CLIP "
                f"tower and 'full' with a SigLIP one, not {strategy!r} with {tower!r}"
            )
        if vllm_config.model_config.enable_sleep_mode:
            raise ValueError("dfmr encodes pictures between engine steps, so it cannot be combined with sleep mode")
        if vllm_config.model_config.runner_type == "pooling":
            raise ValueError("dfmr serves models that generate text; set VLLM_PLUGINS='' to use this one for pooling")
        _outlive_reloads(vllm_config.additional_config)
        parallel = vllm_config.parallel_config
        if parallel.worker_extension_cls not in ("", WORKER_EXTENSION):
            raise ValueError(
                f"--worker-extension-cls {parallel.worker_extension_cls} cannot be combined with dfmr's own"
            )
        parallel.worker_extension_cls = WORKER_EXTENSION
        vllm_config.model_config.multimodal_config.mm_processor_cache_gb = 0


def _outlive_reloads(additional_config: Any) -> None:
    """With a profiles file, SIGHUP means to read it again, so it must not end the processes that do not.

    What is ignored here stays ignored in the processes that this one starts; an API process sets its own handler.
    """
    settings = additional_config.get("dfmr") if isinstance(additional_config, dict) else None
    named = isinstance(settings, dict) and settings.get("profiles")
    if named and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
