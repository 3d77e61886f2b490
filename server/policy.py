"""What an operator or a client may ask of the compressor, and the one place where its defaults live.

An operator's settings travel in vLLM's own ``--additional-config '{"dfmr": {...}}'`` (`dfmr-serve` writes it from its
``--dfmr-*`` options), so that plain ``vllm serve`` takes them too. What they leave open comes from the checkpoint's
``dfmr_profile.json``, and else from the defaults below.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from dfmr_kernels.choices import Choice, extent
from dfmr_kernels.controls import Method
from dfmr_kernels.decide import thresholds as kernel_thresholds
from dfmr_kernels.metrics import metric_by_name
from dfmr_kernels.regions import block_factors
from dfmr_kernels.scores import AGGREGATES
from server.profiles.checkpoint import checkpoint_profile
from server.profiles.format import Profile, details

UNTRAINED_FACTORS = (1, 2)
"""Factors for a checkpoint without a profile: pooling that a model was not trained with costs accuracy quickly."""

UNTRAINED_TAU = 0.25
"""Threshold for a checkpoint without a profile. Scores depend on the encoder's scale, so this is a cautious guess."""

ANSWER_TOKENS = 256
"""Room that is left for the answer where a request names no ``max_tokens``, at most an eighth of the context."""

MOST_BOXES = 64
"""Protected boxes of one picture."""

Detail = Literal["auto", "low", "high"]
Mode = Literal["picture", "regions"]
Factor = Annotated[int, Field(ge=1, le=64)]
Fps = Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)]
SceneThreshold = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Tau = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]


def _has_area(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise ValueError("a box is [left, top, right, bottom], shares from 0 to 1 with left < right and top < bottom")
    return box


Box = Annotated[tuple[_Share, _Share, _Share, _Share], AfterValidator(_has_area)]
Boxes = Annotated[tuple[Box, ...], Field(max_length=MOST_BOXES)]


def _ascending(factors: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(factors)) != len(factors):
        raise ValueError("factors must not repeat")
    return tuple(sorted(factors))


class VideoOptions(BaseModel):
    """The ``dfmr.video`` object of a request: which frames are looked at, and where a scene ends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fps: Fps | None = Field(None, description="frames looked at per second of video")
    max_frames: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most frames looked at; of a longer video they are spread over its whole length"
    )
    scene_threshold: SceneThreshold | None = Field(
        None,
        description="a scene ends before a frame that differs more than this: 0 is equal, 1 unrelated, 2 opposite",
    )


class DfmrOptions(BaseModel):
    """The ``dfmr`` object of a request. What it leaves out is decided by the server's policy."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"tau": 0.4, "factors": [1, 2, 3]},
                {"profile": "archive"},
                {"enabled": False},
                {"max_visual_tokens": 1200},
                {"fit_context": False},
                {"mode": "regions", "factors": [1, 2, 4], "max_tokens_per_image": 200},
                {"protect": [[[0.6, 0.1, 0.9, 0.4]], []]},
            ]
        },
    )

    profile: str | None = Field(
        None,
        description="name of one of the server's profiles; the fields beside it override what it says",
        examples=["archive"],
    )
    enabled: bool | None = Field(None, description="false keeps every visual token of every picture", examples=[False])
    tau: Tau | dict[Factor, Tau] | None = Field(
        None,
        description="threshold on a picture's score: one number, or one per pooling factor",
        examples=[0.4, {2: 0.3, 3: 0.5}],
    )
    factors: tuple[Factor, ...] | None = Field(
        None,
        min_length=1,
        description="pooling factors that may be chosen, among those that the server offers",
        examples=[[1, 2, 3]],
    )
    max_tokens_per_image: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="upper bound on the visual tokens of each picture; overrides tau where it has to",
        examples=[144],
    )
    max_visual_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="upper bound on the visual tokens of all pictures together; pictures are pooled further where the "
        "least is lost",
        examples=[1200],
    )
    fit_context: bool | None = Field(
        None,
        description="pool pictures further where the prompt and max_tokens would not fit the context together",
        examples=[False],
    )
    mode: Mode | None = Field(
        None,
        description="picture: one factor for each picture; regions: one for each block of it",
        examples=["regions"],
    )
    protect: Annotated[tuple[Boxes, ...], Field(min_length=1)] | None = Field(
        None,
        description="for each picture in order, boxes [left, top, right, bottom] as shares of its width and height "
        "that are never pooled; beside those that stand with a picture's image_url",
        examples=[[[[0.6, 0.1, 0.9, 0.4]], []]],
    )
    method: Method | None = Field(
        None,
        description="dfmr pools; drop-cls and drop-random drop as many tokens instead, as controls in evaluations, "
        "where the operator allows them",
        examples=["dfmr"],
    )
    video: VideoOptions | None = Field(
        None, description="how videos are sampled and cut; see docs/video.md", examples=[{"fps": 2, "max_frames": 32}]
    )

    @field_validator("factors")
    @classmethod
    def _sorted(cls, factors: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if factors is None else _ascending(factors)


class Policy(BaseModel):
    """How pictures are compressed: the candidates, the thresholds and the score they are compared with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    tau: Tau | dict[Factor, Tau] = UNTRAINED_TAU
    factors: tuple[Factor, ...] = Field(UNTRAINED_FACTORS, min_length=1)
    max_tokens_per_image: Annotated[int, Field(ge=1)] | None = None
    max_visual_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="upper bound on the visual tokens of all pictures of a request together"
    )
    fit_context: bool = Field(True, description="pool pictures further where they would not fit the context")
    mode: Mode = Field("picture", description="one factor for each picture, or with regions for each block of it")
    metric: str = Field("std", description="what is measured inside each window: see docs/scores.md")
    aggregate: str = Field("mean", description="how the window scores of a picture become its score")
    method: Method = Field("dfmr", description="dfmr pools; the controls drop-cls and drop-random drop tokens")
    video_fps: Fps = Field(1.0, description="frames looked at per second of video")
    video_max_frames: Annotated[int, Field(ge=1)] = Field(32, description="most frames of a video that are looked at")
    video_scene_threshold: SceneThreshold = Field(
        0.4, description="how much a frame differs that starts a new scene: 0 is equal, 1 unrelated, 2 opposite"
    )
    allow_controls: bool = Field(False, description="whether requests may ask for a control as their method")

    @field_validator("factors")
    @classmethod
    def _sorted(cls, factors: tuple[int, ...]) -> tuple[int, ...]:
        return _ascending(factors)

    @field_validator("metric")
    @classmethod
    def _loadable(cls, name: str) -> str:
        metric_by_name(name)
        return name

    @field_validator("aggregate")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in AGGREGATES:
            raise ValueError(f"unknown aggregate {name!r}; there are {', '.join(AGGREGATES)}")
        return name

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if isinstance(self.tau, dict) and (missing := [s for s in self.factors if s > 1 and s not in self.tau]):
            raise ValueError(f"tau has no threshold for factor {', '.join(map(str, missing))}")
        self._check_method()
        return self

    def _check_method(self, protects: bool = False) -> None:
        if self.method != "dfmr" and (protects or self.mode == "regions"):
            raise ValueError(f"dfmr.method: {self.method} drops tokens of whole pictures; it knows no regions or boxes")

    @property
    def candidates(self) -> tuple[int, ...]:
        """The factors that are measured: those offered, and 1, which is always possible."""
        return tuple(sorted({1, *self.factors}))

    def merge(self, options: DfmrOptions | None) -> "Policy":
        """This policy with a request's options in place of its own.

        Raises:
            ValueError: the request names a factor that the server does not offer, or a control that it does not allow.
        """
        if options is None:
            return self
        if options.method not in (None, "dfmr", self.method) and not self.allow_controls:
            raise ValueError(
                f"dfmr.method: {options.method} is a control for evaluations, which this server does not allow; "
                "its operator can, with --dfmr-allow-controls true"
            )
        wanted = options.model_dump(exclude_none=True, exclude={"profile", "protect"})
        wanted |= {f"video_{name}": value for name, value in wanted.pop("video", {}).items()}
        offered = set(self.candidates)
        named = set(options.factors or ())
        if isinstance(options.tau, dict):
            named |= options.tau.keys()
        if unknown := sorted(named - offered):
            raise ValueError(
                f"dfmr: pooling factor {', '.join(map(str, unknown))} is not offered; "
                f"this server offers {', '.join(map(str, sorted(offered)))}"
            )
        merged = self.model_copy(update=wanted)
        merged._check_method(protects=bool(options.protect))
        return merged

    def choice(
        self, candidates: tuple[int, ...], grid: tuple[int, int], detail: Detail, protected: bytes | None = None
    ) -> Choice:
        """How a picture of ``grid`` (rows, columns) may be pooled.

        Args:
            candidates: the factors that are measured.
            grid: of the encoder's map.
            detail: as in `thresholds`.
            protected: one byte per cell, row-major, 1 where it must not be pooled; None if there are none.

        Raises:
            ValueError: no factor of this policy fits ``max_tokens_per_image``, or what is protected exceeds it.
        """
        if detail == "high" or not self.enabled:
            return Choice(self.thresholds(candidates, grid, detail))
        self._check_method(protects=protected is not None)
        factors = (max(self.factors),) if detail == "low" else self.factors
        chain = block_factors(grid, factors) if self.mode == "regions" else ()
        if len(chain) < 2 and protected is None:
            return Choice(self.thresholds(candidates, grid, detail))
        row = kernel_thresholds(grid, candidates, self.tau, chain if len(chain) > 1 else factors)
        limit = self.max_tokens_per_image
        choice = Choice(tuple(row), math.lcm(*chain) if len(chain) > 1 else 0, protected, limit)
        fewest = extent(choice, grid, candidates).fewest
        if limit is not None and fewest > limit:
            raise ValueError(
                f"dfmr.max_tokens_per_image: {limit} are not enough for its regions and what is protected: "
                f"the fewest possible is {fewest}"
            )
        return choice

    def thresholds(self, candidates: Sequence[int], grid: tuple[int, int], detail: Detail) -> tuple[float, ...]:
        """What each candidate's score has to stay under for a picture of ``grid`` (rows, columns) to be pooled by it.

        ``detail`` is OpenAI's per-picture wish: ``high`` keeps every token, ``low`` takes the largest factor,
        ``auto`` decides by score.

        Returns:
            one number per candidate; ``inf`` always passes, ``-inf`` never does.

        Raises:
            ValueError: no factor of this policy fits ``max_tokens_per_image``.
        """
        if detail == "high" or not self.enabled:
            return tuple(math.inf if s == 1 else -math.inf for s in candidates)
        factors = (max(self.factors),) if detail == "low" else self.factors
        return tuple(kernel_thresholds(grid, candidates, self.tau, factors, self.max_tokens_per_image))


_BOXES: TypeAdapter[tuple[Box, ...]] = TypeAdapter(Boxes)


def read_boxes(value: Any) -> tuple[Box, ...]:
    """Boxes as a client sends them with a picture.

    Raises:
        ValueError: they are none; says what is wrong.
    """
    try:
        return _BOXES.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"protect must be a list of boxes [left, top, right, bottom]: {details(error)}") from error


class ServerSettings(BaseModel):
    """The operator's side: the default policy and the bounds of phase one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Policy = Policy()
    max_batch: int = Field(8, ge=1, description="most pictures in one encode; bounds how long decoding can be held up")
    max_queue: int = Field(512, ge=1, description="most pictures waiting for an encode; above it requests get a 503")
    cache_bytes: int = Field(1 << 30, ge=0, description="bound of the feature cache of one API process; 0 turns it off")
    profiles: str | None = Field(None, description="a YAML file of named policies, see docs/profiles.md")
    profile: str | None = Field(None, description="the profile that applies where neither request nor key names one")
    max_video_seconds: float = Field(60, gt=0, le=3600, description="longest video that is taken")
    max_video_bytes: int = Field(64 << 20, ge=1, description="largest video file that is taken")
    max_video_frames: int = Field(64, ge=1, description="most frames of a video that a request may ask for")
    max_videos: int = Field(16, ge=1, description="most videos in work or waiting; above it requests get a 503")
    preprocess_threads: int = Field(0, ge=0, description="threads that read pictures; 0 is one per core, at most 16")
    baseline_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of compressed chat requests that an idle engine runs again, with and without compression, "
        "to measure latency saved and agreement of answers; costs two more answers each",
    )
    baseline_max_load: int = Field(
        0, ge=0, description="most requests in the engine beside which such a run may start, and goes on"
    )
    request_log: Path | None = Field(
        None,
        description="file that gets a JSON line for each answered request, for dfmr-report; no text and no pictures",
    )

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        """Policy fields may stand at the top level: ``{"tau": 0.4, "max_batch": 4}``."""
        if not isinstance(values, dict):
            return values
        inner = {k: v for k, v in values.items() if k in Policy.model_fields}
        rest = {k: v for k, v in values.items() if k not in Policy.model_fields}
        if inner:
            rest["policy"] = {**rest.get("policy", {}), **inner}
        return rest


def load_settings(
    additional_config: Mapping[str, Any], model: str, revision: str | None = None
) -> tuple[ServerSettings, Profile | None]:
    """The settings in force: the operator's over the checkpoint's profile over the defaults.

    Args:
        additional_config: vLLM's ``--additional-config``; ours is under ``"dfmr"``.
        model: the checkpoint's local folder or hub name.
        revision: of the checkpoint at the hub.

    Returns:
        the settings, and the checkpoint's profile if it has one.

    Raises:
        ValueError: a setting is unknown or out of range; the message names it.
    """
    settings = additional_config.get("dfmr", {})
    if not isinstance(settings, dict) or not isinstance(settings.get("policy", {}), dict):
        raise ValueError(f"dfmr settings: expected an object, not {settings!r}")
    settings = {**settings.get("policy", {}), **{k: v for k, v in settings.items() if k != "policy"}}
    profile = checkpoint_profile(model, revision)
    try:
        merged = ServerSettings.model_validate({**(profile.policy if profile else {}), **settings})
    except ValidationError as error:
        raise ValueError(f"dfmr settings: {details(error)}") from error
    return merged, profile
