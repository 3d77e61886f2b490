"""What stands in a profiles file and in a checkpoint's ``dfmr_profile.json``."""

import math
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from yaml.constructor import ConstructorError

DEFAULT_PROFILE = "default"
"""What reports and metrics call the server's own policy, where no named profile is in force."""

LEAST_COSINE = 0.99
MOST_STRETCH = 0.05
"""Two fingerprints are of one encoder if their vectors point the same way and are as long, up to the rounding of
dtypes and devices."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
KeyDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Fingerprint(BaseModel):
    """What an encoder is known by again. Scores, and so thresholds, are in the units of its features."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    config: str = Field(description="digest of the vision tower's configuration and the preprocessing")
    features: tuple[float, ...] = Field(description="mean features of a fixed picture, at evenly spaced channels")

    def difference(self, other: "Fingerprint") -> str | None:
        """Why the other is of another encoder; None if it is of this one."""
        if self.config != other.config:
            return "its vision tower or preprocessing is configured differently"
        if len(self.features) != len(other.features):
            return "its features are of another width"
        own, others = math.hypot(*self.features), math.hypot(*other.features)
        product = sum(a * b for a, b in zip(self.features, other.features, strict=True))
        cosine = product / (own * others) if own * others else float(own == others)
        if cosine < LEAST_COSINE or abs(own - others) > MOST_STRETCH * max(own, others):
            return f"its weights differ: features of the same picture have a cosine of {cosine:.3f}"
        return None


class Calibration(BaseModel):
    """The pictures that a profile's thresholds were set on, and the encoder that scored them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pictures: int = Field(ge=1, description="number of pictures")
    target_tokens: float = Field(gt=0, description="mean visual tokens a picture that were asked for")
    mean_tokens: float = Field(gt=0, description="mean visual tokens a picture that the thresholds gave")
    metric: str = Field("std", description="what was measured in a window")
    aggregate: str = Field("mean", description="how the windows of a picture became its score")
    factor: int = Field(ge=1, description="pooling factor whose scores are counted below")
    edges: tuple[float, ...] = Field(min_length=1, description="inner edges of the score's bins, ascending")
    shares: tuple[float, ...] = Field(description="share of the pictures in each bin, one more than edges")
    encoder: Fingerprint

    @model_validator(mode="after")
    def _bins(self) -> Self:
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges must ascend")
        if len(self.shares) != len(self.edges) + 1 or abs(sum(self.shares) - 1) > 0.01 or min(self.shares) < 0:
            raise ValueError("shares must be one more than edges, not negative, and add up to 1")
        return self


class Drift(BaseModel):
    """When live pictures are no longer those of the calibration."""

    model_config = _STRICT

    window: int = Field(2000, ge=50, le=100_000, description="latest pictures that are looked at")
    least: int = Field(200, ge=20, description="pictures before anything is said: fewer differ by chance")
    psi: float = Field(0.25, gt=0, description="population stability index of the scores above which to warn")
    tokens_share: float = Field(0.2, gt=0, description="share of the target by which mean tokens may miss it")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.least > self.window:
            raise ValueError(f"least ({self.least}) is more than the window holds ({self.window})")
        return self


class PressureStep(BaseModel):
    """One ceiling."""

    model_config = _STRICT

    max_tokens_per_image: int | None = Field(None, ge=1, description="most visual tokens of a picture")
    max_visual_tokens: int | None = Field(None, ge=1, description="most visual tokens of a request")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.max_tokens_per_image is None and self.max_visual_tokens is None:
            raise ValueError("a step needs max_tokens_per_image or max_visual_tokens")
        return self


class Pressure(BaseModel):
    """What is given up, step by step, while the KV cache is nearly full."""

    model_config = _STRICT

    high: float = Field(0.9, gt=0, le=1, description="part of the KV cache in use from which detail is given up")
    low: float = Field(0.7, ge=0, lt=1, description="part of the KV cache in use up to which it is given back")
    hold_seconds: float = Field(5, ge=0, description="time at or above high before each step down")
    calm_seconds: float = Field(30, ge=0, description="time at or below low before each step back up")
    steps: tuple[PressureStep, ...] = Field(min_length=1, max_length=16, description="ceilings, the mildest first")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        for field in PressureStep.model_fields:
            ceilings = [value for step in self.steps if (value := getattr(step, field)) is not None]
            if ceilings != sorted(ceilings, reverse=True):
                raise ValueError(f"steps: {field} must not grow from step to step")
        return self


class Profile(BaseModel):
    """``dfmr_profile.json``: what a checkpoint was trained with and calibrated to; ``dfmr-calibrate`` writes one."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    policy: dict[str, Any]
    note: str = ""
    calibration: Calibration | None = None


class NamedProfile(BaseModel):
    """One policy of a profiles file. What it leaves open is the server's own."""

    model_config = _STRICT

    note: str = Field("", description="who it is for")
    calibrated: str | None = Field(
        None, description="a file that dfmr-calibrate wrote, relative to this one: its thresholds, watched for drift"
    )
    policy: dict[str, Any] = Field(default_factory=dict, description="fields of the policy that this profile sets")
    drift: Drift = Field(default_factory=Drift, description="when to warn; only with calibrated")
    pressure: Pressure | None = Field(None, description="less detail while the KV cache is nearly full; off if null")


class ProfilesFile(BaseModel):
    """A file of named policies, and which API keys they apply to."""

    model_config = _STRICT

    profiles: dict[Name, NamedProfile] = Field(min_length=1)
    keys: dict[KeyDigest, str] = Field(
        default_factory=dict, description="SHA-256 of an API key, in lower-case hexadecimal, to the key's profile"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if DEFAULT_PROFILE in self.profiles:
            raise ValueError(f"{DEFAULT_PROFILE!r} is the name of the server's own policy; choose another")
        known = {DEFAULT_PROFILE, *self.profiles}
        if unknown := sorted(set(self.keys.values()) - known):
            raise ValueError(f"keys: there is no profile {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return self


class _Loader(yaml.SafeLoader):
    """YAML, but a name that stands twice is an error: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a name must be a plain word", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, "a name stands twice in one mapping", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_profiles(path: Path) -> ProfilesFile:
    """A profiles file, checked as far as it can be without the server.

    Raises:
        ValueError: it cannot be read or is wrong; says where. API keys are never part of the message.
    """
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{place}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML") from error
    try:
        return ProfilesFile.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {details(error)}") from None


def read_profile(path: Path) -> Profile:
    """A ``dfmr_profile.json``.

    Raises:
        ValueError: it cannot be read or is wrong; says what.
    """
    try:
        return Profile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {details(error)}") from error


def details(error: ValidationError) -> str:
    """What is wrong, on one line. Names under ``keys`` are left out: they may be API keys that were put in clear."""

    def line(location: tuple[int | str, ...], message: str) -> str:
        if location[:1] == ("keys",) and len(location) > 1:
            return "keys: every name must be the SHA-256 of an API key, in lower-case hexadecimal, and not the key"
        return f"{'.'.join(map(str, location))}: {message}" if location else message

    return "; ".join(dict.fromkeys(line(e["loc"], e["msg"].removeprefix("Value error, ")) for e in error.errors()))
