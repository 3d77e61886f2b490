"""The row for vLLM's own overview board, alone on a board of its own and added to another one."""

from deploy.dashboards.health import cache_hit_ratio
from deploy.dashboards.panels import Json, Query, board, laid_out, lines
from deploy.dashboards.savings import keep_ratio_rate
from deploy.dashboards.variables import SELECTION
from deploy.promql import ours, quantile, rate

_TITLE = "DFMR: visual tokens"
_NEEDED = {variable["name"] for variable in SELECTION}


def row() -> Json:
    """A board with nothing but the row: to look at, or to copy panels from."""
    return board(
        "dfmr-vllm-row",
        "DFMR / Row for vLLM's overview",
        "The row that `python -m deploy.dashboards --add-row-to BOARD.json` appends to vLLM's own overview board.",
        [(_TITLE, _panels())],
        SELECTION,
    )


def with_row(other: Json) -> Json:
    """Another board with the row below what it has.

    Raises:
        ValueError: the board lacks a template variable that the row's queries use.
    """
    there = {variable["name"] for variable in other.get("templating", {}).get("list", [])}
    if missing := _NEEDED - there:
        raise ValueError(f"the board has no template variable {', '.join(sorted(missing))}")
    panels = other["panels"]
    positions = [panel["gridPos"] for panel in panels]
    top = max((position["y"] + position["h"] for position in positions), default=0)
    nested = [inner for panel in panels for inner in panel.get("panels", [])]
    first_id = 1 + max((panel.get("id", 0) for panel in (*panels, *nested)), default=0)
    return {**other, "panels": [*panels, *laid_out([(_TITLE, _panels())], top=top, first_id=first_id)]}


def _panels() -> list[Json]:
    tokens = "dfmr_visual_tokens_total"
    return [
        lines(
            "Visual tokens",
            "What the encoder made, and what of it the language model was given.",
            [
                Query(rate(ours(tokens, 'stage="original"')), "original", "light-blue"),
                Query(rate(ours(tokens, 'stage="kept"')), "kept", "dark-blue"),
            ],
            unit="suffix: tok/s",
            width=6,
        ),
        lines(
            "Keep ratio",
            "Kept visual tokens over original ones.",
            [Query(keep_ratio_rate("model_name"), "{{model_name}}")],
            unit="percentunit",
            maximum=1,
            width=6,
        ),
        lines(
            "Before the engine, p95",
            "Wait for the vision encoder, and the encode call itself.",
            [
                Query(quantile(0.95, ours("dfmr_encode_queue_seconds{}")), "wait", "orange"),
                Query(quantile(0.95, ours("dfmr_encode_seconds{}")), "encode", "dark-orange"),
            ],
            unit="s",
            width=6,
        ),
        lines(
            "Feature cache hit ratio",
            "Pictures whose features were already there, over all.",
            [Query(cache_hit_ratio("model_name"), "{{model_name}}")],
            unit="percentunit",
            maximum=1,
            width=6,
        ),
    ]
