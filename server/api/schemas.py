"""Requests and responses of our routes; what they share with OpenAI's is vLLM's own."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from server.policy import Detail, DfmrOptions, Policy

_DFMR = Field(None, description="How this request's pictures are compressed; what it leaves out is the server's policy")


class DfmrChatCompletionRequest(ChatCompletionRequest):
    """OpenAI's chat completion request with a ``dfmr`` object."""

    dfmr: DfmrOptions | None = _DFMR


class DfmrResponsesRequest(ResponsesRequest):
    """OpenAI's responses request with a ``dfmr`` object."""

    dfmr: DfmrOptions | None = _DFMR


class ImageUrl(BaseModel):
    """A picture as OpenAI's chat API names one."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="a data URL, or an http(s) or file URL that this server is allowed to read")
    detail: Detail = "auto"


class ExplainRequest(BaseModel):
    """One picture to be measured and decided on, without an answer from the language model."""

    model_config = ConfigDict(extra="forbid")

    image_url: ImageUrl
    dfmr: DfmrOptions | None = _DFMR
    overlay: bool = Field(True, description="draw the kept grid over the picture")


class CandidateReport(BaseModel):
    """One pooling factor: what the picture scored at it, and what that meant."""

    factor: int
    visual_tokens: int
    score: float = Field(description="in units of the encoder's features; at factor 1 there is nothing to lose")
    rule: Literal["threshold", "always", "never"] = Field(description="how the policy treats this factor")
    threshold: float | None = Field(description="what the score has to stay under; null unless the rule is threshold")
    passes: bool


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
    candidates: list[CandidateReport]
    overlay: str | None = Field(description="PNG as a data URL: what the encoder saw, with one cell per kept token")


def json_schema_examples() -> dict[str, Any]:
    """Examples for the OpenAPI page."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/gauge.jpg", "detail": "auto"}}
    return {
        "several pictures": {
            "value": {
                "messages": [
                    {"role": "user", "content": [picture, picture, {"type": "text", "text": "What differs?"}]}
                ],
                "dfmr": {"max_tokens_per_image": 144},
            }
        }
    }
