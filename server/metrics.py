"""Every Prometheus collector of ours, in one table. They appear on vLLM's own ``/metrics`` page.

Gauges that count are summed over live API processes, so the page is right with ``--api-server-count`` too. Names carry
no colon: scrapers that ask for classic names would get them rewritten. ``profile`` is the name of a configured profile,
or ``default`` where none is in force, so that nothing that clients send makes a new series.
"""

from prometheus_client import Counter, Gauge, Histogram

_MODEL = ("model_name",)
_POLICY = (*_MODEL, "profile")
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TTFT_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0)

VISUAL_TOKENS = Counter(
    "dfmr_visual_tokens_total",
    "Visual tokens of pictures and of sampled frames of videos in answered requests: stage=original is what the "
    "encoder made, stage=kept what the LLM was given",
    (*_POLICY, "stage"),
)
IMAGES = Counter(
    "dfmr_images_total",
    "Accepted pictures by pooling factor (mixed where blocks have their own) and by where their features came from "
    "(encoder or cache)",
    (*_POLICY, "factor", "source"),
)
IMAGE_ERRORS = Counter(
    "dfmr_image_errors_total",
    "Pictures refused, by reason",
    (*_MODEL, "reason"),
)
VIDEOS = Counter(
    "dfmr_videos_total",
    "Accepted videos by where their features came from (encoder or cache)",
    (*_POLICY, "source"),
)
VIDEO_FRAMES = Counter(
    "dfmr_video_frames_total",
    "Frames of videos in answered requests: stage=sampled is what was looked at, stage=kept the slices over time that "
    "are left",
    (*_POLICY, "stage"),
)
KV_BYTES_SAVED = Counter(
    "dfmr_kv_bytes_saved_total",
    "Bytes of KV cache that pooled-away tokens would have taken, from the model's KV cache layout",
    _POLICY,
)
COMPRESSED_REQUESTS = Counter(
    "dfmr_compressed_requests_total",
    "Accepted requests of whose pictures compression removed at least one visual token",
    _POLICY,
)
SCORE = Histogram(
    "dfmr_score",
    "Intrinsic information of a picture at the smallest pooling factor above 1, in units of the encoder's features",
    _MODEL,
    buckets=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0),
)
KEEP_RATIO = Histogram(
    "dfmr_keep_ratio",
    "Kept visual tokens over original ones, per picture",
    _POLICY,
    buckets=(0.01, 0.02, 0.03, 0.07, 0.12, 0.26, 0.5, 0.75, 0.999, 1.0),
)
SCORE_DRIFT = Gauge(
    "dfmr_score_drift",
    "Population stability index of the latest pictures' scores against those that the profile was calibrated on, less "
    "what chance makes of it where those were few: 0.1 is a small shift, 0.25 a large one; NaN until there are enough "
    "pictures; of the API process that set it last",
    _POLICY,
    multiprocess_mode="livemostrecent",
)
KEEP_DRIFT = Gauge(
    "dfmr_keep_drift",
    "Mean kept tokens of the latest pictures over the profile's calibrated target, less 1: 0.2 is a fifth more than "
    "was asked for; NaN until there are enough pictures; of the API process that set it last",
    _POLICY,
    multiprocess_mode="livemostrecent",
)
PRESSURE_LEVEL = Gauge(
    "dfmr_pressure_level",
    "Steps by which a profile's ceiling on visual tokens is lowered because the KV cache is nearly full; 0 is none; "
    "the highest of the live API processes",
    _POLICY,
    multiprocess_mode="livemax",
)
IMAGES_PER_REQUEST = Histogram(
    "dfmr_images_per_request",
    "Pictures in a request that has any",
    _MODEL,
    buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
)
PREPROCESS_SECONDS = Histogram(
    "dfmr_preprocess_seconds",
    "Time to decode, convert, resize and crop one picture, without waiting for a thread",
    _MODEL,
    buckets=_SECONDS,
)
ENCODE_SECONDS = Histogram(
    "dfmr_encode_seconds",
    "Time of one encode call: transfer to the worker, vision tower, reduction, transfer back",
    _MODEL,
    buckets=_SECONDS,
)
ENCODE_QUEUE_SECONDS = Histogram(
    "dfmr_encode_queue_seconds",
    "Time a preprocessed picture waited for its encode call to start",
    _MODEL,
    buckets=_SECONDS,
)
ENCODE_QUEUE = Gauge(
    "dfmr_encode_queue_pictures",
    "Preprocessed pictures that wait for an encode call, in all live API processes",
    _MODEL,
    multiprocess_mode="livesum",
)
ENCODE_BATCH_SIZE = Histogram(
    "dfmr_encode_batch_size",
    "Pictures in one encode call",
    _MODEL,
    buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
)
CACHE_HITS = Counter("dfmr_cache_hits_total", "Pictures whose features were in the feature cache", _MODEL)
CACHE_MISSES = Counter("dfmr_cache_misses_total", "Pictures whose features were not in the feature cache", _MODEL)
CACHE_EVICTIONS = Counter("dfmr_cache_evictions_total", "Pictures evicted from the feature cache", _MODEL)
CACHE_BYTES = Gauge(
    "dfmr_cache_bytes", "Bytes held by the feature cache of all live API processes", _MODEL, multiprocess_mode="livesum"
)
TTFT = Histogram(
    "dfmr_ttft_seconds",
    "Time from scheduling to the first token of a sampled request, run again in the background with the compression "
    "that it was answered with; queueing and phase one (fetch, preprocess, encode) are not in it, no cache is read",
    _POLICY,
    buckets=_TTFT_SECONDS,
)
BASELINE_TTFT = Histogram(
    "dfmr_baseline_ttft_seconds",
    "The same as dfmr_ttft_seconds, for the same requests, with every visual token kept: their difference is the "
    "latency saved in prefill, measured in pairs",
    _POLICY,
    buckets=_TTFT_SECONDS,
)
BASELINE_AGREEMENT = Histogram(
    "dfmr_baseline_agreement",
    "Token overlap (F1 over tokens, 0 to 1) of the compressed and the uncompressed answer to a sampled request at "
    "temperature 0",
    _POLICY,
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999, 1.0),
)
BASELINE_ANSWERS = Counter(
    "dfmr_baseline_answers_total",
    "Sampled requests at temperature 0: match=exact where the compressed and the uncompressed answer have the same "
    "tokens, match=different elsewhere",
    (*_POLICY, "match"),
)
BASELINE_RUNS = Counter(
    "dfmr_baseline_runs_total",
    "Requests drawn for the baseline by what became of them: measured, or why not (busy, backlog, gave_way, too_long, "
    "failed)",
    (*_MODEL, "outcome"),
)
REQUEST_LOG_DROPPED = Counter(
    "dfmr_request_log_dropped_total",
    "Lines that the request log lost because its disk did not keep up",
    _MODEL,
)
