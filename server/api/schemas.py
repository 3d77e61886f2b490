"""Requests and responses of our routes; what they share with OpenAI's is vLLM's own."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from server.policy import Boxes, Detail, DfmrOptions, Policy
from server.savings import RegionsReport, SqueezedReport

_DFMR = Field(None, description="How this request's pictures are compressed; what it leaves out is the server's policy")


class DfmrChatCompletionRequest(ChatCompletionRequest):
    """OpenAI's chat completion request with a ``dfmr`` object."""

    dfmr: DfmrOptions | None = _DFMR

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, data: Any) -> Any:
        """Without a message's null fields, which some clients send. With one it is none of vLLM's type but one of
        OpenAI's: pydantic makes its parts an iterator that is read once, and drops what OpenAI does not know."""
        messages = data.get("messages") if isinstance(data, dict) else None
        if not isinstance(messages, list):
            return data
        return {**data, "messages": [_without_nulls(message) for message in messages]}


def _without_nulls(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if value is not None or name == "content"}


class DfmrBatchRequest(BatchChatCompletionRequest):
    """vLLM's batch of conversations. It has no ``dfmr`` object: rather than ignored, one is refused."""

    dfmr: None = None


class DfmrResponsesRequest(ResponsesRequest):
    """OpenAI's responses request with a ``dfmr`` object."""

    dfmr: DfmrOptions | None = _DFMR


class ImageUrl(BaseModel):
    """A picture as OpenAI's chat API names one."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="a data URL, or an http(s) or file URL that this server is allowed to read")
    detail: Detail = "auto"
    protect: Boxes = Field((), description="boxes [left, top, right, bottom] as shares of its sides, never pooled")


class VideoUrl(BaseModel):
    """A video as vLLM's chat API names one."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        min_length=1, description="a data URL, or an http(s) or file URL that this server is allowed to read"
    )
    detail: Detail = "auto"


class ExplainRequest(BaseModel):
    """One picture or video to be measured and decided on, without an answer from the language model."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "image_url": {"url": "https://example.com/gauge.jpg", "protect": [[0.6, 0.1, 0.9, 0.4]]},
                    "dfmr": {"mode": "regions", "factors": [1, 2, 4]},
                },
                {"video_url": {"url": "https://example.com/line.mp4"}, "dfmr": {"video": {"fps": 2}}},
            ]
        },
    )

    image_url: ImageUrl | None = None
    video_url: VideoUrl | None = None
    dfmr: DfmrOptions | None = _DFMR
    overlay: bool = Field(True, description="draw the kept grid over the picture, or over frames of each scene")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.image_url is None) == (self.video_url is None):
            raise ValueError("give either image_url or video_url")
        return self


class CandidateReport(BaseModel):
    """One pooling factor: what the picture scored at it, and what that meant."""

    factor: int
    visual_tokens: int
    score: float = Field(description="in units of the encoder's features; at factor 1 there is nothing to lose")
    rule: Literal["threshold", "always", "never"] = Field(description="how the policy treats this factor")
    threshold: float | None = Field(description="what the score has to stay under; null unless the rule is threshold")
    passes: bool


class RegionsExplanation(RegionsReport):
    """Which pooling factor each block has, and why."""

    scores: dict[int, list[list[float]]] = Field(
        description="by pooling factor, the score of every block, in rows of blocks as in factors"
    )
    protected: list[list[bool]] = Field(description="whether a protected box touches the block")


class AlternativeReport(BaseModel):
    """What another threshold, the same for all factors, would give."""

    tau: float = Field(description="the smallest, to four digits, at which so few visual tokens are kept")
    visual_tokens: int
    factor: int | None = Field(description="of the whole picture; null where blocks have factors of their own")


class ExplainResponse(BaseModel):
    """Why a picture keeps as many visual tokens as it does."""

    object: Literal["dfmr.explanation"] = "dfmr.explanation"
    factor: int | None
    grid: tuple[int, int] | None
    original_visual_tokens: int
    kept_visual_tokens: int
    detail: Detail
    cached: bool
    profile: str = Field(description="name of the profile in force; default where there is none")
    policy: Policy
    candidates: list[CandidateReport] = Field(description="each factor for the picture as a whole")
    regions: RegionsExplanation | None = Field(description="the blocks, where they have factors of their own")
    squeezed_from: SqueezedReport | None = Field(
        description="what it would have kept without max_visual_tokens; null where that changed nothing"
    )
    alternatives: list[AlternativeReport] = Field(
        description="what would change the decision; empty where no threshold does"
    )
    overlay: str | None = Field(description="PNG as a data URL: what the encoder saw, with one cell per kept token")


def json_schema_examples() -> dict[str, Any]:
    """Examples for the OpenAPI page."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/gauge.jpg", "detail": "auto"}}
    video = {"type": "video_url", "video_url": {"url": "https://example.com/line.mp4", "detail": "auto"}}
    protected = {"type": "image_url", "image_url": {**picture["image_url"], "protect": [[0.6, 0.1, 0.9, 0.4]]}}  # type: ignore[dict-item]
    options: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "several pictures": ([picture, picture], {"max_tokens_per_image": 144}),
        "a budget for all pictures": ([picture] * 3, {"max_visual_tokens": 600}),
        "a short video": ([video], {"video": {"fps": 2, "max_frames": 24, "scene_threshold": 0.4}}),
        "refuse what does not fit": ([picture] * 3, {"fit_context": False}),
        "regions": ([picture], {"mode": "regions", "factors": [1, 2, 4]}),
        "a protected box": ([protected], {}),
        "protected boxes by picture": ([picture, picture], {"protect": [[[0.6, 0.1, 0.9, 0.4]], []]}),
    }
    return {
        name: {
            "value": {
                "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": "What differs?"}]}],
                "dfmr": dfmr,
            }
        }
        for name, (pictures, dfmr) in options.items()
    }
