"""vLLM's renderer with phase one in it: pictures are encoded and pooled before the prompt's placeholders are sized."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.inputs import MultiModalDataDict, MultiModalInput, MultiModalUUIDDict
from vllm.logger import init_logger
from vllm.renderers.chat_utils import ChatCompletionMessageParam, ConversationMessage
from vllm.renderers.hf import HfRenderer
from vllm.renderers.inputs import DictPrompt
from vllm.renderers.params import ChatParams
from vllm.tokenizers.hf import HfTokenizer
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.metrics.prometheus import get_prometheus_registry

from server.encoding.decisions import Budget
from server.encoding.encoder import Picture, PictureEncoder
from server.encoding.fingerprint import config_digest, fingerprint
from server.encoding.jobs import EncodedPicture, EncodeJob, EncodeResult, joined
from server.encoding.preprocess import Preprocessor
from server.encoding.video import EncodedVideo, VideoEncoder, apart, budget_beside, together, with_slices
from server.errors import PictureError, RefusedError
from server.policy import ANSWER_TOKENS, Policy, load_settings
from server.profiles.book import Chosen
from server.profiles.drift import DriftWatch
from server.profiles.format import Fingerprint
from server.profiles.pressure import PressureWatch, kv_usage
from server.profiles.store import ProfileStore
from server.request import Rendered, RequestState, current_request
from server.savings import Report, Savings
from server.vllm_plugin import ARCHITECTURE
from server.vllm_plugin.connector import reading
from server.vllm_plugin.messages import image_of, pictures_of, protected, with_details
from server.vllm_plugin.owner import owner_of
from server.vllm_plugin.processing import DfmrProcessingInfo, prompt_with_features
from server.vllm_plugin.replies import results_of
from server.vllm_plugin.videos import connector_of, fetch, fetch_async, video_parts, with_videos

logger = init_logger(f"vllm.{__name__}")


class DfmrRenderer(HfRenderer):
    """`HfRenderer` for LLaVA checkpoints; for every other model it is `HfRenderer` unchanged."""

    _process_multimodal_async: Any
    fingerprint: Fingerprint

    def __init__(self, config: VllmConfig, tokenizer: HfTokenizer | None) -> None:
        super().__init__(config, tokenizer)
        self.encoder: PictureEncoder | None = None
        if ARCHITECTURE not in (config.model_config.architectures or []):
            return
        info = self.get_mm_processor().info
        assert isinstance(info, DfmrProcessingInfo)
        self._info = info
        self._image_token: int = info.get_hf_config().image_token_index
        self._engine: AsyncLLM | LLMEngine | None = None
        model = config.model_config
        model_name = model.served_model_name
        settings, own = load_settings(config.additional_config, model.model, model.revision)
        if own is None:
            logger.warning(
                "dfmr: no dfmr_profile.json of this checkpoint was found, so it is not known to be trained with pooled "
                "pictures. Factors are %s and tau=%s is not calibrated to its encoder; watch answer quality.",
                settings.policy.factors,
                settings.policy.tau,
            )
        self.settings = settings
        preprocessor = Preprocessor.from_processor(info.get_hf_processor().image_processor)
        hf = info.get_hf_config()
        self._config = config_digest(
            hf.vision_config.to_dict(), hf.vision_feature_layer, hf.vision_feature_select_strategy, preprocessor
        )
        self.profiles = ProfileStore(settings, own, self._config)
        self.encoder = PictureEncoder(
            settings,
            preprocessor,
            info.get_grid(),
            model_name,
            run=self._encode_on_worker,
            run_sync=self._encode_on_worker_sync,
            candidates=self.profiles.measured,
        )
        self.videos = VideoEncoder(self.encoder, settings, self._encode_on_worker_sync)
        self._resources.callback(self.encoder.close)
        self._resources.callback(self.videos.close)
        self._savings = Savings(model_name, info.get_grid(), self.encoder.candidates, settings.policy)
        self.profiles.subscribe(lambda book: self._savings.start_at_zero(book.entries))
        self._drift = DriftWatch(model_name, self.encoder.candidates)
        self.profiles.subscribe(self._drift.adopt)
        self._pressure = PressureWatch(model_name)
        self.profiles.subscribe(self._pressure.adopt)
        self._upstream_process_multimodal_async = self._process_multimodal_async
        self._process_multimodal_async = self._process_pictures_async

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache that one token takes over all workers; 0 until the first picture has been encoded."""
        return self._savings.kv_bytes_per_token or 0.0

    def at_shutdown(self, close: Callable[[], None]) -> None:
        """Call ``close``, maybe from another thread, when the engine is about to be shut down."""
        self._resources.callback(close)

    def attach_engine(self, engine: AsyncLLM | LLMEngine) -> None:
        """Give the renderer the engine whose workers encode its pictures."""
        self._engine = engine

    async def start(self) -> Fingerprint:
        """Encode a first picture, check that the profiles are of this encoder, and listen for changes to them.

        Raises:
            EncodeFailedError: the picture could not be encoded; a server that cannot encode should not start.
            ValueError: a profile was calibrated for another encoder.
        """
        assert self.encoder is not None
        self.fingerprint = fingerprint(self._config, await self.encoder.warm_up())
        self.profiles.know_encoder(self.fingerprint)
        self.profiles.start()
        registry, model_name = get_prometheus_registry(), self.model_config.served_model_name
        self._looking = asyncio.create_task(self._pressure.run(lambda: kv_usage(registry, model_name)))
        return self.fingerprint

    async def clear_mm_cache_async(self) -> None:
        """Forget pictures too: they may have been encoded with other weights."""
        await super().clear_mm_cache_async()
        if self.encoder is not None:
            self.encoder.cache.clear()

    @property
    def engine(self) -> AsyncLLM | LLMEngine:
        """The engine that was attached, or else the one in this process that uses this renderer."""
        if self._engine is None:
            self._engine = owner_of(self)
        return self._engine

    def render_messages(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], DictPrompt]:
        if self.encoder is None:
            return super().render_messages(messages, params)
        try:
            urls, details = pictures_of(messages)
            if parts := video_parts(messages):
                self._info.validate_num_items("image", len(urls) + len(parts))
                videos = fetch(connector_of(self.model_config), parts, self.settings.max_video_bytes)
                messages = with_videos(messages, parts, videos)
                _, details = pictures_of(messages)
            with reading(urls):
                conversation, prompt = super().render_messages(messages, params)
        except RefusedError as error:
            self._savings.refuse(error)
            raise
        return conversation, with_details(prompt, details)

    async def render_messages_async(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], DictPrompt]:
        if self.encoder is None:
            return await super().render_messages_async(messages, params)
        try:
            urls, details = pictures_of(messages)
            if parts := video_parts(messages):
                self._info.validate_num_items("image", len(urls) + len(parts))  # Before any is fetched.
                videos = await fetch_async(connector_of(self.model_config), parts, self.settings.max_video_bytes)
                messages = with_videos(messages, parts, videos)
                _, details = pictures_of(messages)
            with reading(urls):
                conversation, prompt = await super().render_messages_async(messages, params)
        except RefusedError as error:
            self._savings.refuse(error)
            raise
        return conversation, with_details(prompt, details)

    def _process_multimodal(
        self,
        prompt: list[int],
        mm_data: MultiModalDataDict,
        mm_uuids: MultiModalUUIDDict | None,
        mm_processor_kwargs: Mapping[str, object] | None,
        media_io_kwargs: Mapping[str, Mapping[str, object]] | None = None,
        *,
        skip_mm_cache: bool = False,
    ) -> MultiModalInput:
        """Blocking variant, for offline use."""
        pictures = self._pictures(mm_data)
        if pictures is None:
            return super()._process_multimodal(
                prompt, mm_data, mm_uuids, mm_processor_kwargs, media_io_kwargs, skip_mm_cache=skip_mm_cache
            )
        assert self.encoder is not None
        request = current_request.get() or RequestState()
        try:
            stills, clips = apart(pictures)
            stills = protected(stills, request.options)
            chosen = self._chosen(request, [*stills, *clips])
            videos = self.videos.encode_sync(clips, chosen.policy)
            whole = self._budget(len(prompt) - len(pictures), chosen.policy, request)
            budget = self._beside(videos, stills, chosen.policy, request, whole)
            encoded = self.encoder.encode_sync(stills, chosen.policy, budget)
            return self._accept(prompt, pictures, encoded, videos, request, chosen.name, count=not skip_mm_cache)
        except RefusedError as error:
            self._savings.refuse(error)
            raise

    async def _process_pictures_async(
        self,
        prompt: list[int],
        mm_data: MultiModalDataDict,
        mm_uuids: MultiModalUUIDDict | None = None,
        mm_processor_kwargs: Mapping[str, object] | None = None,
        media_io_kwargs: Mapping[str, Mapping[str, object]] | None = None,
        *,
        skip_mm_cache: bool = False,
    ) -> MultiModalInput:
        pictures = self._pictures(mm_data)
        if pictures is None:
            return await self._upstream_process_multimodal_async(
                prompt,
                mm_data,
                mm_uuids=mm_uuids,
                mm_processor_kwargs=mm_processor_kwargs,
                media_io_kwargs=media_io_kwargs,
                skip_mm_cache=skip_mm_cache,
            )
        assert self.encoder is not None
        request = current_request.get() or RequestState()
        try:
            stills, clips = apart(pictures)
            stills = protected(stills, request.options)
            await self.encoder.look_at(stills)
            chosen = self._chosen(request, [*stills, *clips])
            videos = await self.videos.encode(clips, chosen.policy)
            whole = self._budget(len(prompt) - len(pictures), chosen.policy, request)
            budget = self._beside(videos, stills, chosen.policy, request, whole)
            encoded = await self.encoder.encode(stills, chosen.policy, budget)
            engine_input = self._accept(
                prompt, pictures, encoded, videos, request, chosen.name, count=not skip_mm_cache
            )
        except RefusedError as error:
            self._savings.refuse(error)
            raise
        if request.keep_rendered and not videos:
            request.rendered = Rendered(prompt, pictures, encoded)
        return engine_input

    def input_apart(self, prompt: list[int], encoded: Sequence[EncodedPicture], salt: str) -> MultiModalInput:
        """The engine's input for pictures and a prompt that were here before, sharing no cached state with them.

        Args:
            prompt: token ids with one image token per picture.
            encoded: the pictures.
            salt: keeps prefix cache and encoder cache apart from those of every other request.
        """
        apart = [picture._replace(key=f"{picture.key}-{salt}") for picture in encoded]
        engine_input = prompt_with_features(prompt, self._image_token, apart)
        engine_input["cache_salt"] = salt
        return engine_input

    def _chosen(self, request: RequestState, pictures: Sequence[Picture]) -> Chosen:
        """The request's policy, under the ceiling of its profile while the KV cache is nearly full.

        The ceiling gives way to what the pictures keep at least, so that it refuses no request.
        """
        assert self.encoder is not None
        chosen = self.profiles.book.choose(request.options, request.key)
        limited = self._pressure.limited(chosen.name, chosen.policy, self.encoder.grid, len(pictures))
        if limited == chosen.policy:
            return chosen
        fewest = self.encoder.fewest(pictures, chosen.policy)
        each = max((n for n, one in zip(fewest, pictures, strict=True) if one.detail != "high"), default=1)
        least = {"max_tokens_per_image": each, "max_visual_tokens": sum(fewest)}
        higher = {
            name: max(n, least[name])
            for name in least
            if (n := getattr(limited, name)) != getattr(chosen.policy, name) and n is not None
        }
        return chosen._replace(policy=limited.model_copy(update=higher))

    def _pictures(self, mm_data: MultiModalDataDict) -> list[Picture] | None:
        """The request's pictures, or None where it holds something that upstream must handle or refuse."""
        if self.encoder is None or set(mm_data) != {"image"}:
            return None
        images = mm_data["image"]
        images = list(images) if isinstance(images, Sequence) else [images]
        if not images or any(isinstance(image_of(i), torch.Tensor) and image_of(i).is_floating_point() for i in images):
            return None
        self._info.validate_num_items("image", len(images))
        pictures = [i if isinstance(i, Picture) else Picture(i) for i in images]
        for index, picture in enumerate(pictures):
            if picture.image is None:
                raise PictureError(index, "missing", "has a uuid only; resend the picture itself")
        return pictures

    def _budget(self, words: int, policy: Policy, request: RequestState) -> Budget:
        """What the request's pictures may keep together, beside so many other tokens of the prompt.

        An answer as long as ``max_tokens`` comes first. Where no pooling makes room for it, vLLM shortens the answer
        anyway, so then the usual room is enough, and at last any.
        """
        if not policy.fit_context:
            return Budget(policy.max_visual_tokens)
        limit = self.model_config.max_model_len
        room = limit - words
        answers = (request.max_tokens, min(ANSWER_TOKENS, limit // 8), 1)
        return Budget(policy.max_visual_tokens, tuple(room - answer for answer in answers if answer))

    def _beside(
        self,
        videos: Sequence[EncodedVideo],
        stills: Sequence[Picture],
        policy: Policy,
        request: RequestState,
        budget: Budget,
    ) -> Budget:
        """What a request's videos leave of its budget for its pictures."""
        if not videos:
            return budget
        assert self.encoder is not None
        own = self.profiles.book.choose(request.options, request.key).policy.max_visual_tokens
        pressed = budget.asked != own
        return budget_beside(videos, budget, own, sum(self.encoder.fewest(stills, policy)) if pressed else 0)

    def _accept(
        self,
        prompt: list[int],
        sent: list[Picture],
        encoded: list[EncodedPicture],
        videos: list[EncodedVideo],
        request: RequestState,
        profile: str,
        *,
        count: bool,
    ) -> MultiModalInput:
        if videos:
            prompt, shown = with_slices(prompt, self._image_token, together(sent, encoded, videos))
            engine_input = prompt_with_features(prompt, self._image_token, shown)
        else:
            engine_input = prompt_with_features(prompt, self._image_token, encoded)
        report = self._savings.report(encoded, profile, videos)
        length, limit = len(engine_input["prompt_token_ids"]), self.model_config.max_model_len
        if length >= limit:
            kept = report.kept_visual_tokens
            raise PictureError(
                None,
                "too_long",
                f"the prompt is too long even compressed: {length} tokens, {kept} of them visual (from "
                f"{report.original_visual_tokens}), and the context holds {limit} including the answer. "
                "Send fewer pictures, a shorter text, or a smaller dfmr.max_tokens_per_image"
                + (" or dfmr.video.max_frames." if videos else "."),
            )
        request.report = report
        if count:
            seen = [(p.scores, len(p.features.tensor)) for p in encoded]
            request.count = partial(self._count, report, seen)
            if not request.counts:
                request.count()
        return engine_input

    def _count(self, report: Report, seen: Sequence[tuple[Sequence[float], int]]) -> None:
        self._savings.count(report)
        self._drift.observe(report.profile, seen)

    async def _encode_on_worker(self, jobs: Sequence[EncodeJob]) -> list[EncodeResult | Exception]:
        engine = self.engine
        assert isinstance(engine, AsyncLLM)
        if self._savings.kv_bytes_per_token is None:
            self._savings.kv_bytes_per_token = sum(await engine.collective_rpc("dfmr_kv_bytes_per_token"))
        replies = await engine.collective_rpc("dfmr_encode", args=self._arguments(jobs))
        return results_of(replies, self._info.get_grid())

    def _encode_on_worker_sync(self, jobs: Sequence[EncodeJob]) -> list[EncodeResult | Exception]:
        engine = self.engine
        if not isinstance(engine, LLMEngine):
            raise NotImplementedError("dfmr encodes pictures of chat messages only; AsyncLLM was given a raw prompt")
        if self._savings.kv_bytes_per_token is None:
            self._savings.kv_bytes_per_token = sum(engine.collective_rpc("dfmr_kv_bytes_per_token"))
        return results_of(engine.collective_rpc("dfmr_encode", args=self._arguments(jobs)), self._info.get_grid())

    def _arguments(self, jobs: Sequence[EncodeJob]) -> tuple[Any, ...]:
        assert self.encoder is not None
        return (
            joined(jobs),
            [len(jobs), *jobs[0].pixels.shape],
            self.encoder.preprocessor.normalisation,
            list(self.encoder.candidates),
            self.encoder.policy.aggregate,
            self.encoder.policy.metric,
            [{"choice": list(job.choice), "method": job.method, "levels": job.levels} for job in jobs],
        )
