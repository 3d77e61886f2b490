"""The Latency board: what a client waits for, and where a picture's time goes. Everything on it is measured."""

from deploy.dashboards.panels import Json, Query, board, heatmap, lines, stat
from deploy.dashboards.variables import SELECTION
from deploy.promql import divide, increase, mean, ours, quantile, rate, vllm

_QUANTILES = ((0.5, "p50", "light-blue"), (0.95, "p95", "blue"), (0.99, "p99", "dark-blue"))
_TTFT = vllm("time_to_first_token_seconds{}")
_ITL = vllm("inter_token_latency_seconds{}")
_E2E = vllm("e2e_request_latency_seconds{}")
_COMPRESSED = ours("dfmr_ttft_seconds{}")
_WHOLE = ours("dfmr_baseline_ttft_seconds{}")
_ANSWERS = "dfmr_baseline_answers_total"
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
            ("Latency saved: pairs of runs with and without compression (--dfmr-baseline-share)", _saved()),
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
            "From the start of a request's processing in the API server to its first token: fetching and decoding "
            "pictures, encoding, queueing and prefill.",
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


def saved_share(by: str = "") -> str:
    """Share of the time to the first token that compression saved, over the same requests in the board's time range."""
    spent, whole = (increase(select.replace("{}", "_sum"), by) for select in (_COMPRESSED, _WHOLE))
    return f"1 - {divide(spent, whole)}"


def _saved() -> list[Json]:
    pairs = (
        "A sample of compressed requests, each run again with compression and without, on an engine without other "
        "work, no cache being read. "
    )
    return [
        stat(
            "Time to first token saved",
            f"{pairs}Share of the time from scheduling to the first token, over the chosen time range.",
            saved_share(),
            unit="percentunit",
        ),
        stat(
            "Saved per request",
            f"{pairs}Mean difference from scheduling to the first token, over the chosen time range.",
            divide(
                f"({increase(_WHOLE.replace('{}', '_sum'))} - {increase(_COMPRESSED.replace('{}', '_sum'))})",
                increase(_WHOLE.replace("{}", "_count")),
            ),
            unit="s",
        ),
        stat(
            "Same answer",
            f"{pairs}Share of pairs at temperature 0 with the same tokens, over the chosen time range.",
            divide(increase(ours(_ANSWERS, 'match="exact"')), increase(ours(_ANSWERS))),
            unit="percentunit",
        ),
        stat(
            "Token overlap",
            f"{pairs}Mean F1 over tokens of the two answers at temperature 0, over the chosen time range.",
            divide(increase(ours("dfmr_baseline_agreement_sum")), increase(ours("dfmr_baseline_agreement_count"))),
            unit="percentunit",
        ),
        stat(
            "Pairs measured",
            "How many pairs the figures to the left rest on.",
            increase(ours("dfmr_baseline_ttft_seconds_count")),
            unit="short",
        ),
        stat(
            "Drawn, not measured",
            "Share of drawn requests that were not measured: the engine was busy, or a user came during the run.",
            divide(
                increase(ours("dfmr_baseline_runs_total", 'outcome!="measured"')),
                increase(ours("dfmr_baseline_runs_total")),
            ),
            unit="percentunit",
        ),
        lines(
            "Scheduling to first token, with and without",
            f"{pairs}Means.",
            [Query(mean(_COMPRESSED), "compressed", "dark-blue"), Query(mean(_WHOLE), "every token kept", "orange")],
            unit="s",
        ),
        lines(
            "Agreement of answers by model and profile",
            f"{pairs}Mean token overlap at temperature 0.",
            [
                Query(mean(ours("dfmr_baseline_agreement{}"), "model_name, profile"), "{{model_name}} {{profile}}"),
            ],
            unit="percentunit",
            maximum=1,
        ),
        lines(
            "Drawn requests by outcome",
            "measured: both runs were made. busy: the engine had no idle time for a minute. backlog: others waited "
            "already. gave_way: a user came. too_long: no room for it uncompressed.",
            [Query(rate(ours("dfmr_baseline_runs_total"), "outcome"), "{{outcome}}")],
            unit="suffix: /s",
            stacked=True,
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
