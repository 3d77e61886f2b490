"""The Health board: is it up, does it refuse or fail, what fills, and do pictures still look as they did."""

from deploy.dashboards.panels import Json, Query, board, heatmap, lines, stat
from deploy.dashboards.variables import SELECTION
from deploy.promql import SCOPE, divide, http, mean, ours, quantile, rate, summed, vllm

_SHARE_STEPS = (("green", None), ("orange", 0.01), ("red", 0.05))
_FULL_STEPS = (("green", None), ("orange", 0.8), ("red", 0.95))
_STATUS_COLORS = (("2xx", "green"), ("4xx", "orange"), ("5xx", "red"))
_HITS = ours("dfmr_cache_hits_total")
_MISSES = ours("dfmr_cache_misses_total")
_ERRORS = ours("dfmr_image_errors_total")
_FAILED = http("http_requests_total", 'status="5xx"')


def health() -> Json:
    """Errors, queues, caches, memory, and the distribution of scores."""
    return board(
        "dfmr-health",
        "DFMR / Health",
        "Is it up, does it refuse or fail, what fills, and do pictures still look as they did.",
        [
            ("Now", _now()),
            ("Errors and refusals", _errors()),
            ("Queues", _queues()),
            ("Caches and memory", _caches()),
            ("Pictures: has the traffic drifted?", _scores()),
        ],
        SELECTION,
    )


def waiting_pictures(by: str = "") -> str:
    """Mean number of pictures before the encoder: by Little's law, seconds waited per second."""
    return rate(ours("dfmr_encode_queue_seconds_sum"), by)


def cache_hit_ratio(by: str = "") -> str:
    return divide(rate(_HITS, by), f"({rate(_HITS, by)} + {rate(_MISSES, by)})")


def refused_share() -> str:
    """Refused pictures over all; an error counter that does not exist yet counts as 0."""
    refused = f"({rate(_ERRORS)} or vector(0))"
    return divide(refused, f"({rate(ours('dfmr_images_total'))} + {refused})")


def _now() -> list[Json]:
    failures = f"({rate(_FAILED)} or vector(0))"
    return [
        stat(
            "Instances down",
            "Instances that Prometheus could not scrape. A server whose engine dies ends, so this shows it too.",
            f"count({http('up')} == 0) or vector(0)",
            unit="none",
            thresholds=(("green", None), ("red", 1)),
        ),
        stat(
            "Server errors",
            "Share of HTTP requests answered with a 5xx, full queues (503) among them.",
            divide(failures, rate(http("http_requests_total"))),
            unit="percentunit",
            thresholds=_SHARE_STEPS,
        ),
        stat(
            "Pictures refused",
            "Share of pictures that were refused: unreadable, too large, not to be fetched.",
            refused_share(),
            unit="percentunit",
            thresholds=_SHARE_STEPS,
        ),
        stat(
            "Requests waiting",
            "Requests in the engine's queue.",
            summed(vllm("num_requests_waiting")),
            unit="none",
        ),
        stat(
            "Pictures waiting",
            "Mean number of pictures waiting for the vision encoder: seconds waited per second (Little's law).",
            waiting_pictures(),
            unit="short",
        ),
        stat(
            "KV cache in use, fullest",
            "Share of KV cache blocks in use, on the instance where it is highest.",
            f"max({vllm('kv_cache_usage_perc')})",
            unit="percentunit",
            thresholds=_FULL_STEPS,
        ),
    ]


def _errors() -> list[Json]:
    return [
        lines(
            "HTTP answers by status",
            "All routes but health and metrics.",
            [
                Query(rate(http("http_requests_total", f'status="{status}"')), status, color)
                for status, color in _STATUS_COLORS
            ],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Pictures refused by reason",
            "Each was answered with a 400 that names the picture. decode: unreadable data; fetch: its URL could not "
            "be read; too_large; policy: the request asks for what the server does not offer.",
            [Query(rate(_ERRORS, "reason"), "{{reason}}")],
            unit="suffix: pictures/s",
            stacked=True,
        ),
        lines(
            "Admission refusals",
            "Requests that the engine's queue limits turned away with a 503 "
            "(--max-num-queued-reqs, --max-num-queued-tokens).",
            [Query(rate(vllm("admission_rejections_total"), "reason"), "{{reason}}")],
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Requests by how they ended",
            "stop and length are whole answers; abort is a client that left, or a server that was stopped.",
            [Query(rate(vllm("request_success_total"), "finished_reason"), "{{finished_reason}}")],
            unit="reqps",
            stacked=True,
            width=12,
        ),
        lines(
            "Preemptions",
            "Requests thrown out of the KV cache to be computed again: the cache is too small for the load.",
            [Query(rate(vllm("num_preemptions_total"), "instance"), "{{instance}}")],
            unit="suffix: /s",
            width=12,
        ),
    ]


def _queues() -> list[Json]:
    return [
        lines(
            "Requests in the engine",
            "Running: in the batch that is decoded. Waiting: not yet scheduled.",
            [
                Query(summed(vllm("num_requests_running")), "running", "green"),
                Query(summed(vllm("num_requests_waiting")), "waiting", "orange"),
            ],
            unit="short",
            width=6,
        ),
        lines(
            "Pictures waiting for the encoder",
            "Mean number waiting: seconds waited per second (Little's law). At --dfmr-max-queue requests get a 503.",
            [Query(waiting_pictures("instance"), "{{instance}}")],
            unit="short",
            width=6,
        ),
        lines(
            "Wait for the encoder",
            "How long a preprocessed picture waited for its encode call to start.",
            [
                Query(quantile(0.5, ours("dfmr_encode_queue_seconds{}")), "p50", "light-blue"),
                Query(quantile(0.95, ours("dfmr_encode_queue_seconds{}")), "p95", "blue"),
            ],
            unit="s",
            width=6,
        ),
        lines(
            "Encode batch size",
            "Pictures in one encode call. At --dfmr-max-batch all the time, the encoder is what limits the server.",
            [
                Query(mean(ours("dfmr_encode_batch_size{}")), "mean", "purple"),
                Query(quantile(0.95, ours("dfmr_encode_batch_size{}")), "p95", "blue"),
            ],
            unit="short",
            width=6,
        ),
    ]


def _caches() -> list[Json]:
    prefix_hits = rate(vllm("prefix_cache_hits_total"))
    prefix_queries = rate(vllm("prefix_cache_queries_total"))
    return [
        lines(
            "Feature cache: hit ratio",
            "Pictures whose features were already there, over all.",
            [Query(cache_hit_ratio("instance"), "{{instance}}")],
            unit="percentunit",
            maximum=1,
        ),
        lines(
            "Feature cache: evictions",
            "Pictures pushed out by others. A full cache always evicts; it is too small when the hit ratio falls too.",
            [Query(rate(ours("dfmr_cache_evictions_total"), "instance"), "{{instance}}")],
            unit="suffix: pictures/s",
        ),
        lines(
            "Feature cache: size",
            "Bytes held, over all API processes of an instance. The bound, --dfmr-cache-bytes, is per process.",
            [Query(summed(f"dfmr_cache_bytes{{{SCOPE}}}", "instance"), "{{instance}}")],
            unit="bytes",
        ),
        lines(
            "KV cache in use",
            "Share of KV cache blocks in use.",
            [Query(f"max by (instance) ({vllm('kv_cache_usage_perc')})", "{{instance}}")],
            unit="percentunit",
            maximum=1,
            width=12,
        ),
        lines(
            "Prefix cache: hit ratio",
            "Prompt tokens found in the KV cache over those looked for. A picture sent again with the same prompt "
            "before it is found here too.",
            [Query(divide(prefix_hits, prefix_queries), "hit ratio", "green")],
            unit="percentunit",
            maximum=1,
            width=12,
        ),
    ]


def _worst(gauge: str) -> str:
    """The highest value of a gauge among instances; NaN, not enough pictures yet, counts where there is no other."""
    return f"max by (model_name, profile) ({ours(gauge)})"


def _scores() -> list[Json]:
    score, kept = ours("dfmr_score{}"), ours("dfmr_keep_drift")
    return [
        lines(
            "Score percentiles",
            "Intrinsic information of pictures. The thresholds were calibrated on a certain mix: a lasting shift "
            "means that pictures have changed, and with them saving and, possibly, quality.",
            [
                Query(quantile(0.1, score), "p10", "light-blue"),
                Query(quantile(0.5, score), "p50", "blue"),
                Query(quantile(0.9, score), "p90", "dark-blue"),
            ],
            unit="short",
            width=12,
        ),
        heatmap("Scores", "All of them.", rate(ours("dfmr_score_bucket"), "le"), unit="short", width=12),
        lines(
            "Score drift by profile",
            "Population stability index of the latest pictures' scores against the profile's calibration: 0.1 is a "
            "small shift, 0.25 a large one. Only for profiles with a calibration, after enough pictures.",
            [Query(f"{_worst('dfmr_score_drift')} >= 0", "{{model_name}} {{profile}}")],
            unit="short",
        ),
        lines(
            "Kept tokens against target by profile",
            "Mean kept tokens of the latest pictures over the profile's calibrated target, less 1: of the instances "
            "that keep most and least.",
            [
                Query(f"max by (model_name, profile) ({kept}) > -1", "{{model_name}} {{profile}} most"),
                Query(f"min by (model_name, profile) ({kept}) > -1", "{{model_name}} {{profile}} least"),
            ],
            unit="percentunit",
            minimum=None,
        ),
        lines(
            "Ceiling under KV pressure by profile",
            "Steps by which detail is given up because the KV cache is nearly full; 0 is none. Only for profiles that "
            "have steps.",
            [Query(_worst("dfmr_pressure_level"), "{{model_name}} {{profile}}")],
            unit="short",
        ),
    ]
