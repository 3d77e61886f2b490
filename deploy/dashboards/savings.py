"""The Savings board: what compression kept from the language model, and what that may be worth."""

from deploy.dashboards.panels import Json, Query, board, heatmap, lines, number_variable, stat, table
from deploy.dashboards.variables import SELECTION
from deploy.promql import divide, increase, ours, rate, vllm

_TOKENS = "dfmr_visual_tokens_total"
_ORIGINAL = ours(_TOKENS, 'stage="original"')
_KEPT = ours(_TOKENS, 'stage="kept"')
_IMAGES = ours("dfmr_images_total")
_POOLED = ours("dfmr_images_total", 'factor!="1"')
_KV = ours("dfmr_kv_bytes_saved_total")

_PRICE_PER_MILLION = number_variable(
    "price_per_million_tokens",
    "Price per 1M prompt tokens",
    "0.20",
    "What a million prompt tokens cost you, in your currency. Enter your own: the default is nobody's price.",
)
_PRICE_PER_GPU_HOUR = number_variable(
    "price_per_gpu_hour", "Price per GPU hour", "2.50", "What an hour of one GPU costs you, in your currency."
)
_PARAMETERS = number_variable(
    "llm_parameters_billion", "LLM parameters (billions)", "7", "Active parameters of the language model, in billions."
)
_TFLOPS = number_variable(
    "prefill_tflops",
    "Achieved prefill TFLOP/s per GPU",
    "400",
    "What one GPU achieves in prefill, not its peak. 400 is about 40% of an H100's dense bfloat16 peak; a smaller "
    "number makes the estimate of GPU time larger.",
)


def savings() -> Json:
    """Visual tokens, KV cache and prefill compute that were not spent."""
    return board(
        "dfmr-savings",
        "DFMR / Savings",
        "What visual-token compression kept from the language model. Panels marked as estimates say how they are made.",
        [
            ("Over the chosen time range", _totals()),
            ("Visual tokens", _tokens()),
            ("Memory and compute", _resources()),
            ("By model and profile", [_by_model_and_profile()]),
        ],
        [*SELECTION, _PRICE_PER_MILLION, _PRICE_PER_GPU_HOUR, _PARAMETERS, _TFLOPS],
    )


def saved_tokens(by: str = "") -> str:
    """Visual tokens kept from the language model over the board's time range."""
    return f"{increase(_ORIGINAL, by)} - {increase(_KEPT, by)}"


def saved_tokens_rate(by: str = "") -> str:
    return f"{rate(_ORIGINAL, by)} - {rate(_KEPT, by)}"


def keep_ratio_over_range(by: str = "") -> str:
    return divide(increase(_KEPT, by), increase(_ORIGINAL, by))


def keep_ratio_rate(by: str = "") -> str:
    return divide(rate(_KEPT, by), rate(_ORIGINAL, by))


def _token_money(by: str = "") -> str:
    return f"({saved_tokens(by)}) / 1e6 * $price_per_million_tokens"


def _gpu_hours(by: str = "") -> str:
    return f"({saved_tokens(by)}) * 2 * $llm_parameters_billion * 1e9 / ($prefill_tflops * 1e12) / 3600"


def _totals() -> list[Json]:
    return [
        stat(
            "Visual tokens saved",
            "Tokens that the encoder made and the language model was not given.",
            saved_tokens(),
            unit="short",
            width=3,
        ),
        stat(
            "Keep ratio",
            "Visual tokens given to the language model over those that the encoder made.",
            keep_ratio_over_range(),
            unit="percentunit",
            width=3,
        ),
        stat(
            "Pictures compressed",
            "Share of accepted pictures whose pooling factor was above 1.",
            divide(f"({increase(_POOLED)} or vector(0))", increase(_IMAGES)),
            unit="percentunit",
            width=3,
        ),
        stat(
            "KV cache not written",
            "Bytes of KV cache that the saved tokens would have taken, from the model's own layout: layers x key and "
            "value x heads x width x bytes per number.",
            increase(_KV),
            unit="bytes",
            width=3,
        ),
        stat(
            "Money saved, by token price (estimate)",
            "Formula: saved visual tokens / 1,000,000 x the price per 1M prompt tokens entered above. Right if you "
            "pay, or charge, per prompt token; an alternative to the estimate by GPU hours, never to be added to it.",
            _token_money(),
            unit="none",
            width=6,
        ),
        stat(
            "Money saved, by GPU hours (estimate)",
            "Formula: saved visual tokens x 2 x parameters / achieved prefill FLOP/s / 3600 x the price per GPU hour "
            "entered above. Linear layers only: attention is left out, which understates long prompts; the time of the "
            "reduction itself is not subtracted. Real only if the hours are given up or used for other work.",
            f"{_gpu_hours()} * $price_per_gpu_hour",
            unit="none",
            width=6,
        ),
    ]


def _tokens() -> list[Json]:
    return [
        lines(
            "Visual tokens per second",
            "What the encoder made, and what of it the language model was given.",
            [Query(rate(_ORIGINAL), "original", "light-blue"), Query(rate(_KEPT), "kept", "dark-blue")],
            unit="suffix: tok/s",
        ),
        lines(
            "Keep ratio by model and profile",
            "Kept visual tokens over original ones. 1 is no compression. The profile is the policy that a client chose "
            "by name; default is the server's own.",
            [Query(keep_ratio_rate("model_name, profile"), "{{model_name}} {{profile}}")],
            unit="percentunit",
            maximum=1,
        ),
        lines(
            "Prompts shortened by",
            "Saved visual tokens over all prompt tokens that there would have been without "
            "compression: text, system prompt and visual tokens together.",
            [
                Query(
                    divide(
                        f"({saved_tokens_rate('model_name')})",
                        f"({rate(vllm('prompt_tokens_total'), 'model_name')} + {saved_tokens_rate('model_name')})",
                    ),
                    "{{model_name}}",
                )
            ],
            unit="percentunit",
            maximum=1,
        ),
        lines(
            "Pictures by pooling factor",
            "Accepted pictures per second. Factor 1 keeps every token, 2 a quarter, 3 a ninth.",
            [Query(rate(_IMAGES, "factor"), "factor {{factor}}")],
            unit="suffix: pictures/s",
            stacked=True,
        ),
        heatmap(
            "Keep ratio per picture",
            "How many pictures kept which share of their tokens; the upper bounds of "
            "the buckets are chosen to fall between pooling factors.",
            rate(ours("dfmr_keep_ratio_bucket"), "le"),
            unit="percentunit",
        ),
        lines(
            "Pictures by source",
            "Whether features came from the encoder or from the feature cache. A cached "
            "picture saves the encoder's work too.",
            [Query(rate(ours("dfmr_images_total"), "source"), "{{source}}")],
            unit="suffix: pictures/s",
            stacked=True,
        ),
    ]


def _resources() -> list[Json]:
    return [
        lines(
            "KV cache not written",
            "Bytes of KV cache per second that saved tokens would have taken, from the model's own layout.",
            [Query(rate(_KV, "model_name"), "{{model_name}}")],
            unit="Bps",
        ),
        lines(
            "Prefill compute avoided (estimate)",
            "Formula: saved visual tokens per second x 2 x the number of "
            "parameters entered above. Linear layers only: attention is left out, which understates long prompts.",
            [Query(f"({saved_tokens_rate('model_name')}) * 2 * $llm_parameters_billion * 1e9", "{{model_name}}")],
            unit="flops",
        ),
        lines(
            "GPUs that prefill would have kept busy (estimate)",
            "Formula: saved visual tokens per second x 2 x "
            "parameters / achieved prefill FLOP/s of one GPU, as entered above.",
            [
                Query(
                    f"({saved_tokens_rate('model_name')}) * 2 * $llm_parameters_billion * 1e9 "
                    "/ ($prefill_tflops * 1e12)",
                    "{{model_name}}",
                )
            ],
            unit="short",
        ),
    ]


def _by_model_and_profile() -> Json:
    by = "model_name, profile"
    return table(
        "Savings by model and profile (last two columns: estimates)",
        "Over the chosen time range. Formula of the money columns: as in the two estimates at the top, with the "
        "prices entered there; they are alternatives, not to be added.",
        [("model_name", "Model"), ("profile", "Profile")],
        [
            ("Pictures", increase(_IMAGES, by), "short"),
            ("Original tokens", increase(_ORIGINAL, by), "short"),
            ("Kept tokens", increase(_KEPT, by), "short"),
            ("Keep ratio", keep_ratio_over_range(by), "percentunit"),
            ("KV not written", increase(_KV, by), "bytes"),
            ("Money, by tokens (estimate)", _token_money(by), "none"),
            ("Money, by GPU hours (estimate)", f"{_gpu_hours(by)} * $price_per_gpu_hour", "none"),
        ],
    )
