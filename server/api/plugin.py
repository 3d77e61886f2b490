"""The ``vllm.endpoint_plugins`` entry point: mounts our routes on vLLM's app and hands the renderer its engine."""

from argparse import Namespace

from fastapi import FastAPI
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.logger import init_logger
from vllm.tasks import SupportedTask
from vllm.v1.engine.async_llm import AsyncLLM

from server.api import profiles
from server.api.baseline import Baseline
from server.api.drain import Drain, DrainMiddleware
from server.api.middleware import RequestMiddleware
from server.api.routes import router
from server.request_log import RequestLog
from server.vllm_plugin.renderer import DfmrRenderer

logger = init_logger(f"vllm.{__name__}")


class DfmrEndpointPlugin:
    """Loaded by vLLM when ``VLLM_PLUGINS`` names ``dfmr``."""

    name = "dfmr"
    required_tasks: tuple[SupportedTask, ...] | None = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes, drain on SIGTERM, and have vLLM say in ``usage`` how many prompt tokens are visual."""
        app.state.args.enable_prompt_tokens_details = True
        app.state.dfmr_drain = Drain(app.state.args.shutdown_timeout)
        app.add_middleware(RequestMiddleware)
        app.add_middleware(DrainMiddleware, drain=app.state.dfmr_drain)
        app.include_router(router)
        app.include_router(profiles.router)

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        renderer = getattr(engine_client, "renderer", None)
        if isinstance(renderer, DfmrRenderer) and renderer.encoder is not None:
            renderer.attach_engine(engine_client)
            await renderer.start()
            state.dfmr_request_log = _request_log(renderer)
            state.dfmr_baseline = _baseline(engine_client, renderer, state)


def _request_log(renderer: DfmrRenderer) -> RequestLog | None:
    path = renderer.settings.request_log
    if path is None:
        return None
    log = RequestLog(path, renderer.api_process_rank, renderer.model_config.served_model_name)
    renderer.at_shutdown(log.close)
    return log


def _baseline(engine_client: EngineClient | None, renderer: DfmrRenderer, state: State) -> Baseline | None:
    """The measurement against uncompressed runs, if it is wanted and can be had."""
    share = renderer.settings.baseline_share
    chat = getattr(state, "openai_serving_chat", None)
    if share == 0 or chat is None:
        return None
    if not isinstance(engine_client, AsyncLLM) or not engine_client.log_stats:
        logger.warning("dfmr: --dfmr-baseline-share needs the engine's statistics: leave out --disable-log-stats")
        return None
    if engine_client.vllm_config.lora_config is not None:
        logger.warning("dfmr: --dfmr-baseline-share is off: it does not run requests again under LoRA adapters")
        return None
    baseline = Baseline(
        engine_client,
        renderer,
        chat,
        share=share,
        max_load=renderer.settings.baseline_max_load,
        log=state.dfmr_request_log,
    )
    renderer.at_shutdown(baseline.close)
    return baseline
