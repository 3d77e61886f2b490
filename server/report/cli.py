"""``dfmr-report``: what was saved, from Prometheus or from request logs, as Markdown, JSON and one HTML page."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from server.report import page, prometheus, recorded, text
from server.report.costs import Assumptions, report
from server.report.usage import Usage

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DEFAULT_SINCE = "7d"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(prog="dfmr-report", description=__doc__)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--prometheus", metavar="URL", help="a Prometheus that scraped the servers")
    source.add_argument(
        "--log", metavar="FILE", type=Path, nargs="+", help="request logs, as --dfmr-request-log writes them"
    )
    command.add_argument(
        "--since",
        metavar="TIME",
        type=duration,
        help=f"how far back: 90m, 12h, 7d, 2w; default {_DEFAULT_SINCE} with Prometheus, all of a log",
    )
    command.add_argument("--gpu-hour", metavar="PRICE", type=positive, required=True, help="price of a GPU for an hour")
    command.add_argument("--currency", default="USD", help="of the price; default USD")
    command.add_argument("--gpus", type=positive, default=1.0, help="GPUs of one instance; default 1")
    command.add_argument(
        "--instances", type=positive, default=1.0, help="instances that ran, where a log cannot tell; default 1"
    )
    command.add_argument(
        "--parameters-billion", type=positive, help="active parameters of the language model, for prefill without pairs"
    )
    command.add_argument(
        "--prefill-tflops", type=positive, help="TFLOP/s that one GPU achieves in prefill, for prefill without pairs"
    )
    command.add_argument(
        "--output", metavar="NAME", type=Path, help="write NAME.md, NAME.json and NAME.html; default: only print"
    )
    command.add_argument(
        "--header",
        metavar="NAME:VALUE",
        action="append",
        default=[],
        help="HTTP header for Prometheus; may be repeated",
    )
    return command


def duration(text: str) -> int:
    """Seconds of ``7d``.

    Raises:
        argparse.ArgumentTypeError: it is not a number and a unit.
    """
    match = re.fullmatch(r"(\d+)([smhdw])", text)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a number and one of {', '.join(_UNITS)}, as 7d, not {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def positive(text: str) -> float:
    """A number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``dfmr-report``; the exit status."""
    command = parser()
    given = command.parse_args(arguments)
    if (given.parameters_billion is None) != (given.prefill_tflops is None):
        command.error("--parameters-billion and --prefill-tflops go together")
    try:
        usage = _usage(given)
    except (prometheus.PrometheusError, recorded.LogError) as error:
        print(f"dfmr-report: {error}", file=sys.stderr)
        return 1
    result = report(
        usage,
        Assumptions(
            gpu_hour=given.gpu_hour,
            gpus=given.gpus,
            instances=given.instances,
            parameters=None if given.parameters_billion is None else given.parameters_billion * 1e9,
            prefill_flops=None if given.prefill_tflops is None else given.prefill_tflops * 1e12,
            currency=given.currency,
        ),
    )
    print(text.markdown(result), end="")
    if given.output is not None:
        renderings = {".md": text.markdown(result), ".json": text.as_json(result), ".html": page.render(result)}
        for suffix, content in renderings.items():
            given.output.with_name(given.output.name + suffix).write_text(content, encoding="utf-8")
    return 0


def _usage(given: argparse.Namespace) -> Usage:
    now = time.time()
    if given.log:
        return recorded.read(given.log, None if given.since is None else now - given.since)
    headers = dict(header.split(":", 1) for header in given.header if ":" in header)
    source = prometheus.Prometheus(given.prometheus, headers)
    return prometheus.read(source, now, given.since or duration(_DEFAULT_SINCE))


if __name__ == "__main__":
    sys.exit(main())
