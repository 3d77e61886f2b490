"""The ``vllm.endpoint_plugins`` entry point: mounts our routes on vLLM's app and hands the renderer its engine."""

from argparse import Namespace

from fastapi import FastAPI
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.tasks import SupportedTask

from server.api.drain import Drain, DrainMiddleware
from server.api.routes import router
from server.vllm_plugin.renderer import DfmrRenderer


class DfmrEndpointPlugin:
    """Loaded by vLLM when ``VLLM_PLUGINS`` names ``dfmr``."""

    name = "dfmr"
    required_tasks: tuple[SupportedTask, ...] | None = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes, drain on SIGTERM, and have vLLM say in ``usage`` how many prompt tokens are visual."""
        app.state.args.enable_prompt_tokens_details = True
        app.state.dfmr_drain = Drain(app.state.args.shutdown_timeout)
        app.add_middleware(DrainMiddleware, drain=app.state.dfmr_drain)
        app.include_router(router)

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        renderer = getattr(engine_client, "renderer", None)
        if isinstance(renderer, DfmrRenderer) and renderer.encoder is not None:
            renderer.attach_engine(engine_client)
            await renderer.encoder.warm_up()
