"""The Latency board: what a client waits for, and where a picture's time goes. Everything on it is measured."""

from deploy.dashboards.panels import Json, Query, board, heatmap, lines
from deploy.dashboards.variables import SELECTION
from deploy.promql import divide, mean, ours, quantile, rate, vllm

_QUANTILES = ((0.5, "p50", "light-blue"), (0.95, "p95", "blue"), (0.99, "p99", "dark-blue"))
_TTFT = vllm("time_to_first_token_seconds{}")
_ITL = vllm("inter_token_latency_seconds{}")
_E2E = vllm("e2e_request_latency_seconds{}")
_STAGES = (
    ("preprocess", ours("dfmr_preprocess_seconds{}"), "light-yellow"),
    ("wait for the encoder", ours("dfmr_encode_queue_seconds{}"), "orange"),
    ("encode and reduce", ours("dfmr_encode_seconds{}"), "dark-orange"),
    ("wait for the engine", vllm("request_queue_time_seconds{}"), "light-blue"),
    ("prefill", vllm("request_prefill_time_seconds{}"), "dark-blue"),
)


def latency() -> Json:
    """Time to first token, between tokens and to the end, and the stages before the first token."""
    return board(
        "dfmr-latency",
        "DFMR / Latency",
        "What a client waits for, and where a picture's time goes. Everything here is measured.",
        [
            ("What a client waits for", _client()),
            ("Before the first token", _stages()),
            ("What explains it", _load()),
        ],
        SELECTION,
    )


def _quantiles(select: str) -> list[Query]:
    return [Query(quantile(q, select), name, color) for q, name, color in _QUANTILES]


def _client() -> list[Json]:
    return [
        lines(
            "Time to first token",
            "From the start of a request's processing in the API server, pictures read, to its first token: "
            "preprocessing, encoding, queueing and prefill. Fetching pictures from the network is not in it.",
            _quantiles(_TTFT),
            unit="s",
        ),
        lines("Inter-token latency", "Time between two tokens of one answer.", _quantiles(_ITL), unit="s"),
        lines("End to end", "From the start of a request's processing to its last token.", _quantiles(_E2E), unit="s"),
        lines(
            "Time to first token by model, p95",
            "The same, for each model.",
            [Query(quantile(0.95, _TTFT, "model_name"), "{{model_name}}")],
            unit="s",
        ),
        heatmap(
            "Time to first token, all requests",
            "How many requests waited how long.",
            rate(_TTFT.replace("{}", "_bucket"), "le"),
            unit="s",
        ),
        lines(
            "Decode time per answer",
            "From an answer's first token to its last. A shorter KV cache makes each step cheaper.",
            _quantiles(vllm("request_decode_time_seconds{}")),
            unit="s",
        ),
    ]


def _stages() -> list[Json]:
    return [
        lines(
            "Mean time by stage",
            "Means of the stages that one picture passes, one after the other, on top of each other. Preprocessing "
            "and the wait for the encoder are per picture, encoding is per batch, the engine's stages are per "
            "request. Pictures of one request go side by side, so the sum describes a request with one picture.",
            [Query(mean(select), name, color) for name, select, color in _STAGES],
            unit="s",
            stacked=True,
            width=12,
        ),
        lines(
            "p95 by stage",
            "The slow end of each stage by itself; p95s do not add up.",
            [Query(quantile(0.95, select), name, color) for name, select, color in _STAGES],
            unit="s",
            width=12,
        ),
        lines(
            "Encoder time per picture",
            "Time of all encode calls over pictures in them: what one picture costs once it shares a batch.",
            [
                Query(
                    divide(
                        rate(ours("dfmr_encode_seconds_sum"), "model_name"),
                        rate(ours("dfmr_encode_batch_size_sum"), "model_name"),
                    ),
                    "{{model_name}}",
                )
            ],
            unit="s",
        ),
        heatmap(
            "Encode calls",
            "How long encode calls took: transfer to the worker, vision tower, reduction, transfer back. The engine "
            "decodes nothing meanwhile, so a long one shows in inter-token latency.",
            rate(ours("dfmr_encode_seconds_bucket"), "le"),
            unit="s",
        ),
        lines(
            "Encoder busy",
            "Share of time in which an encode call was running, summed over instances. Near 1 per instance, the "
            "encoder is what limits the server.",
            [Query(rate(ours("dfmr_encode_seconds_sum"), "instance"), "{{instance}}")],
            unit="percentunit",
        ),
    ]


def _load() -> list[Json]:
    return [
        lines(
            "Requests finished",
            "Finished requests per second.",
            [Query(rate(vllm("request_success_total"), "model_name"), "{{model_name}}")],
            unit="reqps",
        ),
        lines(
            "Tokens",
            "Prompt tokens processed and tokens generated, per second.",
            [
                Query(rate(vllm("prompt_tokens_total")), "prompt", "dark-blue"),
                Query(rate(vllm("generation_tokens_total")), "generated", "green"),
            ],
            unit="suffix: tok/s",
        ),
        lines(
            "Pictures per request",
            "Among requests that have any.",
            [
                Query(mean(ours("dfmr_images_per_request{}")), "mean", "purple"),
                Query(quantile(0.95, ours("dfmr_images_per_request{}")), "p95", "blue"),
            ],
            unit="short",
        ),
    ]
