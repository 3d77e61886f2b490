"""``python -m loadtests bench|soak``: see loadtests/README.md."""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evals.results import Target, write_json
from loadtests import chain, checks, driver, models, report, scenarios, servers, targets
from loadtests.driver import Load
from loadtests.matrix import Runner
from loadtests.results import Cell, Results, write_csv
from loadtests.scenarios import Matrix, Scenario
from loadtests.servers import Kind, Server
from loadtests.soak import Soak, soak
from loadtests.workload import Questions

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
CACHE_BYTES = {"bench": 256 << 20, "tiny": 8 << 20}
"""Bounds of the feature cache; the tiny model's is soon full, so that what memory grows by is not the cache."""
CONTEXT = {"bench": 8192, "tiny": 4096}
DEFAULT_MODEL = "small"
MEMORY_REQUESTS = 1000
MEMORY_WARM_UP = 200
"""Requests before memory is first looked at: buffers that are shared between processes count once they are touched."""
_START = time.monotonic()
_OF_THE_WHOLE_RUN = ("started", "load_before", "minutes", "resumed")
"""What is told of a run that was resumed as if it had not been interrupted."""


def say(text: str) -> None:
    """Progress, with the time since the start; past whatever standard output is redirected to."""
    print(f"[{time.monotonic() - _START:5.0f} s] {text}", file=sys.__stdout__, flush=True)


def main() -> None:
    arguments = _parser().parse_args()
    driver.quiet()
    # Servers have process groups of their own: without this, ending the run would leave them behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    failed = arguments.run(arguments)
    raise SystemExit(1 if failed and arguments.strict else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    commands = parser.add_subparsers(required=True)
    bench = commands.add_parser("bench", help="the matrix: scenarios, baselines, targets, and the page")
    bench.add_argument("--size", choices=("short", "full"), default="short")
    bench.add_argument("--scenarios", type=Path, default=scenarios.FILE)
    bench.add_argument("--only", nargs="*", default=[], metavar="SCENARIO")
    bench.add_argument("--policies", nargs="+", metavar="POLICY", help="measure these instead of a scenario's own")
    bench.add_argument("--rounds", type=int, metavar="N", help="at most so many rounds of each scenario")
    bench.add_argument("--resume", action="store_true", help="keep what an interrupted run of this size has finished")
    bench.add_argument("--url", help="measure this dfmr server instead of starting one; skips the tiny model")
    bench.add_argument("--baseline-url", help="and this one-phase server of the same checkpoint")
    bench.set_defaults(run=run_bench)
    soaking = commands.add_parser("soak", help="soak and chaos against a server that is started for it")
    soaking.add_argument("--minutes", type=float, default=15)
    soaking.set_defaults(run=run_soak)
    for command in (bench, soaking):
        command.add_argument("--out", type=Path, default=HERE / "results")
        command.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
        command.add_argument("--model", choices=models.SHAPES, default="tiny" if command is soaking else DEFAULT_MODEL)
        command.add_argument(
            "--serve",
            default="",
            metavar="OPTIONS",
            help="further options of vllm serve for servers started here, e.g. '--gpu-memory-utilization 0.4'",
        )
    return parser


def run_bench(arguments: argparse.Namespace) -> bool:
    """Run the matrix and write the results; True if a target was missed."""
    matrix = scenarios.load(arguments.scenarios)
    chosen = matrix.chosen(arguments.size, arguments.only, arguments.rounds, arguments.policies)
    folder = WORK / arguments.size
    folder.mkdir(parents=True, exist_ok=True)
    _begin_or_resume(folder, arguments)
    model = arguments.model if any(s.model == "bench" for s in chosen) else "tiny"
    results = Results(run={**_about(arguments, model), **_earlier(folder)})
    try:
        for role in ("bench", "tiny"):
            wanted = [s for s in chosen if s.model == role]
            if not wanted or (role == "tiny" and arguments.url):
                continue
            kept = {s.name: cells for s in wanted if (cells := _kept(folder, s)) is not None}
            extra = _kept_extra(folder, role)
            if len(kept) < len(wanted) or (not arguments.only and extra is None):
                with _servers(role, arguments, folder) as up:
                    extra = _run_role(role, wanted, kept, matrix, arguments, up, folder)
            for scenario in wanted:
                results.cells += kept[scenario.name]
            results = Results.model_validate({**results.model_dump(by_alias=True), **(extra or {})})
    finally:
        results.run["minutes"] = round(results.run["minutes"] + (time.monotonic() - _START) / 60, 1)
        _file(folder, "run").write_text(json.dumps({name: results.run[name] for name in _OF_THE_WHOLE_RUN}))
    return _finish(results, arguments)


def _begin_or_resume(folder: Path, arguments: argparse.Namespace) -> None:
    """Begin anew, or make sure that what is resumed was measured in the same way.

    Raises:
        SystemExit: it was not.
    """
    names = ("model", "serve", "policies", "rounds", "url", "baseline_url")
    settings = {name: getattr(arguments, name) for name in names} | {"scenarios": arguments.scenarios.read_text()}
    path = _file(folder, "settings")
    if arguments.resume:
        if not path.exists() or json.loads(path.read_text()) != settings:
            raise SystemExit(
                "loadtests: there is no run with these options and scenarios to resume; leave out --resume"
            )
        return
    for old in folder.glob("*.json"):
        old.unlink()
    path.write_text(json.dumps(settings))


def _run_role(
    role: str,
    wanted: list[Scenario],
    kept: dict[str, list[Cell]],
    matrix: Matrix,
    arguments: argparse.Namespace,
    up: dict[str, Server],
    folder: Path,
) -> dict[str, Any]:
    runner = Runner(matrix, arguments.size, up, folder, say)
    runner.warm_up()
    for scenario in wanted:
        if scenario.name not in kept:
            kept[scenario.name] = runner.run(scenario)
            rows = [c.model_dump(mode="json", by_alias=True) for c in kept[scenario.name]]
            _file(folder, scenario.name).write_text(json.dumps(rows))
    extra: dict[str, Any] = {}
    if arguments.only:
        return extra
    if role == "bench":
        extra["chain"] = [step.model_dump() for step in _chain(arguments, kept, folder)]
    elif "dfmr" in up:
        extra = _tiny_checks(matrix, up, folder)
    _file(folder, f"extra {role}").write_text(json.dumps(extra))
    return extra


def _chain(arguments: argparse.Namespace, kept: dict[str, list[Cell]], folder: Path) -> list[Any]:
    cells = {c.policy: c for c in kept.get("four pictures", [])}
    seconds = cells["fixed"].rounds[0].encode_seconds if "fixed" in cells else None
    say("timing the links of phase one")
    checkpoint = folder / "model-bench"
    models.write(checkpoint, models.SHAPES[arguments.model])
    return chain.measure(models.SHAPES[arguments.model], checkpoint, seconds and seconds / 4)


def _tiny_checks(matrix: Matrix, up: dict[str, Server], folder: Path) -> dict[str, Any]:
    context = {
        name: checks.pictures_that_fit(up[matrix.policies[name].server], matrix.policies[name])
        for name in ("one-phase", "fixed", "dfmr")
        if matrix.policies[name].server in up
    }
    say(f"pictures that fit into {CONTEXT['tiny']} tokens: {context}")
    say(f"memory: {MEMORY_REQUESTS} requests")
    runner = Runner(matrix, "short", up, folder, say)

    def answer(requests: int) -> None:
        runner.answer(Questions(requests, 1, ("flat",), 32), "dfmr", 2, Load(concurrency=8))

    answer(MEMORY_WARM_UP)
    memory = checks.memory_growth(up["dfmr"], lambda: answer(MEMORY_REQUESTS), CACHE_BYTES["tiny"])
    say(f"memory: {memory}")
    return {"context": context, "memory": memory}


@contextmanager
def _servers(role: str, arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Server]]:
    name = arguments.model if role == "bench" else "tiny"
    checkpoint = folder / f"model-{role}"
    models.write(checkpoint, models.SHAPES[name])
    if getattr(arguments, "url", None):
        up = {"dfmr": servers.attached(arguments.url, "dfmr", str(checkpoint))}
        if arguments.baseline_url:
            up["one-phase"] = servers.attached(arguments.baseline_url, "one-phase", str(checkpoint))
        yield up
        return
    share = models.SHAPES[name].encoder_share
    say(f"starting servers of model {name!r}: encoding a picture costs {share:.1%} of prefilling its tokens")
    kinds: dict[str, Kind] = {"dfmr": "dfmr", "one-phase": "one-phase"}
    if arguments.run is run_soak:
        del kinds["one-phase"]
    with servers.running(
        kinds,
        checkpoint,
        _options(role, arguments.serve),
        folder,
        say,
    ) as up:
        yield up


def _options(role: str, more: str) -> dict[str, object]:
    options: dict[str, object] = {
        "load-format": "dummy",
        "max-model-len": CONTEXT[role],
        "enforce-eager": True,
        "dfmr-factors": ",".join(map(str, models.FACTORS)),
        "dfmr-tau": 1,
        "dfmr-cache-bytes": CACHE_BYTES[role],
    }
    for option in more.split("--")[1:]:
        key, _, value = option.strip().partition(" ")
        options[key] = value or True
    return options


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-').replace(',', '')}.json"


def _kept(folder: Path, scenario: Scenario) -> list[Cell] | None:
    path = _file(folder, scenario.name)
    return [Cell.model_validate(row) for row in json.loads(path.read_text())] if path.exists() else None


def _kept_extra(folder: Path, role: str) -> dict[str, Any] | None:
    path = _file(folder, f"extra {role}")
    return json.loads(path.read_text()) if path.exists() else None


def _earlier(folder: Path) -> dict[str, Any]:
    """Of the run that is resumed: when it started, the load then, minutes so far, and how often it was resumed."""
    path = _file(folder, "run")
    if not path.exists():
        return {"minutes": 0.0, "resumed": 0}
    earlier: dict[str, Any] = json.loads(path.read_text())
    return {**earlier, "resumed": earlier["resumed"] + 1}


def _about(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    shape = models.SHAPES[model]
    return {
        "size": getattr(arguments, "size", "soak"),
        "model": model,
        "model_note": shape.note,
        "encoder_share": round(shape.encoder_share, 4),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _finish(results: Results, arguments: argparse.Namespace) -> bool:
    results.count_goodput()
    results.targets = [t for t in targets.check(results) if t.measured is not None or not arguments.only]
    for found in results.cells:
        found.samples = []
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = results.run["model"]
    name = f"bench-{arguments.size}" + ("" if model == DEFAULT_MODEL else f"-{model}")
    write_json(out / f"{name}.json", results)
    write_csv(out / f"{name}.csv", results)
    (out / f"{name}.html").write_text(report.render(results))
    for step in results.chain:
        print(f"  {1000 * step.seconds:8.2f} ms  {step.name}")
    _print_targets(results.targets)
    say(f"written: {out / name}.json, .csv and .html")
    return not all(target.passed for target in results.targets)


def run_soak(arguments: argparse.Namespace) -> bool:
    """Soak a server; True if a check failed."""
    folder = WORK / "soak"
    folder.mkdir(parents=True, exist_ok=True)
    role = "tiny" if arguments.model == "tiny" else "bench"
    with _servers(role, arguments, folder) as up:
        found: Soak = soak(up["dfmr"], arguments.minutes, CACHE_BYTES[role], folder, say)
    found.run |= _about(arguments, arguments.model)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "soak.json", found)
    print(f"outcomes: {found.ledger.outcomes}")
    for surprise in found.ledger.surprises:
        print(f"surprise: {surprise}")
    _print_targets(found.targets)
    return not all(target.passed for target in found.targets)


def _print_targets(found: list[Target]) -> None:
    for target in found:
        measured = "not measured" if target.measured is None else f"{target.measured:g}"
        print(f"{'pass ' if target.passed else 'SHORT'}  {target.name}: {measured} (target {target.target})")


if __name__ == "__main__":
    main()
