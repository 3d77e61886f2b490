"""``python -m evals run``, ``field`` and ``convert``."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evals import cases, field, items, measure, targets
from evals.benchmarks import gqa, mmbench, pope, vqa
from evals.client import Endpoint, RequestFailedError
from evals.conditions import CONDITIONS, Change
from evals.items import CALIBRATION_SPLIT, Item
from evals.policies import DEFAULT_MATRIX, Policy, matrix
from evals.report import page
from evals.results import PolicyResult, Results, write_csv, write_json
from evals.runner import Asking
from evals.scoring import scorer
from evals.store import Store
from evals.summary import Graded, comparisons, summarise


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m evals", description="What visual-token compression costs, with controls."
    )
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="a matrix of policies over a data set")
    _common(run)
    run.add_argument("--policies", nargs="+", default=list(DEFAULT_MATRIX), metavar="POLICY")
    run.add_argument(
        "--primary", metavar="POLICY", help="what targets and cases are about; default: the first DFMR policy"
    )
    run.add_argument(
        "--calibration", metavar="FILE.jsonl", help="pictures for token targets; default: see docs/evaluation.md"
    )
    run.add_argument(
        "--cases", type=int, default=6, metavar="N", help="case studies of each outcome; default %(default)s"
    )
    run.set_defaults(action=_run)

    conditions = commands.add_parser("field", help="the same questions under field conditions")
    _common(conditions)
    conditions.add_argument("--policies", nargs="+", default=["full", "dfmr"], metavar="POLICY")
    conditions.add_argument(
        "--conditions", nargs="+", metavar="NAME[:AMOUNT]", default=list(CONDITIONS), help=f"of {', '.join(CONDITIONS)}"
    )
    conditions.set_defaults(action=_field)

    convert = commands.add_parser("convert", help="a public benchmark's files to JSONL")
    convert.add_argument("benchmark", choices=("vqav2", "textvqa", "gqa", "pope", "mmbench"))
    convert.add_argument(
        "files", nargs="+", type=Path, help="questions; for vqav2 questions and annotations; for pope any number"
    )
    convert.add_argument("--images", type=Path, default=Path(), metavar="FOLDER")
    convert.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    convert.set_defaults(action=_convert)
    return top


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--endpoint", default="http://127.0.0.1:8000/v1", metavar="URL")
    command.add_argument("--model", help="default: the first that the endpoint lists")
    command.add_argument("--data", default="builtin:scenes", metavar="builtin:NAME|FILE.jsonl")
    command.add_argument(
        "--count", type=int, metavar="N", help="questions; default: all of a file, 600 of a built-in set"
    )
    command.add_argument("--kinds", nargs="+", metavar="KIND", help="only these kinds of question")
    command.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="an interrupted run goes on from here"
    )
    command.add_argument(
        "--scorer", default="exact", metavar="NAME|module:function", help="where a question names none"
    )
    command.add_argument("--suffix", default="", help="follows every question")
    command.add_argument("--system", help="system message")
    command.add_argument("--max-tokens", type=int, default=32, metavar="N")
    command.add_argument("--concurrency", type=int, default=8, metavar="N", help="1 for undisturbed TTFT")
    command.add_argument("--timeout", type=float, default=300, metavar="SECONDS")
    command.add_argument("--seed", type=int, default=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what goes wrong is one line on stderr and exit status 1."""
    options = parser().parse_args(arguments)
    try:
        options.action(options)
    except (ValueError, OSError, RequestFailedError) as error:
        raise SystemExit(f"evals: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("evals: stopped; the same command goes on from here") from None


def _run(options: argparse.Namespace) -> None:
    policies = matrix(options.policies)
    primary = options.primary or next((p.name for p in policies if p.family == "dfmr"), None)
    if options.primary and primary not in {policy.name for policy in policies}:
        raise ValueError(f"--primary {primary}: not among the policies")
    asyncio.run(_run_async(options, policies, primary))


async def _run_async(options: argparse.Namespace, policies: Sequence[Policy], primary: str | None) -> None:
    default = scorer(options.scorer)
    data = _load(options)
    endpoint = await _connect(options)
    store = _store(options, endpoint, data)
    try:
        source, calibration = _calibration(options, data)
        made = await measure.measure(endpoint, data, policies, store, _asking(options), calibration)
        graded = {p.name: Graded(data, store.rows(p.name), default) for p in policies if p.name not in made.refused}
        full = graded.get("full")
        measured = [
            summarise(policy, graded[policy.name], full if policy.name != "full" else None)
            if policy.name in graded
            else _not_offered(policy, made.refused[policy.name])
            for policy in policies
        ]
        results = Results(
            run={
                **_facts(options, endpoint),
                "calibration": source if any(policy.share is not None for policy in policies) else None,
                "scales": made.scales,
                "primary": primary,
            },
            policies=measured,
            comparisons=comparisons(policies, graded),
        )
        if primary is not None:
            results.targets = targets.check(results, primary, options.data)
        shown: list[cases.Case] = []
        if primary in graded and full is not None:
            chosen = cases.choose(full, graded[primary], options.cases, options.seed)
            shown = await cases.draw(endpoint, chosen, options.out / cases.FOLDER)
    finally:
        store.close()
        await endpoint.close()
    write_json(options.out / "results.json", results)
    write_csv(options.out / "results.csv", results)
    (options.out / "report.html").write_text(page.render(results, shown, primary or ""))
    _tell(results, options.out)


def _field(options: argparse.Namespace) -> None:
    policies = matrix(options.policies)
    if unfit := [policy.name for policy in policies if policy.reference or policy.share is not None]:
        raise ValueError(f"{', '.join(unfit)}: field conditions need policies that are the same for every picture")
    changes = []
    for text in options.conditions:
        amounts = CONDITIONS.get(text)
        changes += [Change(text, amount) for amount in amounts] if amounts else [Change.parse(text)]
    asyncio.run(_field_async(options, policies, changes))


async def _field_async(options: argparse.Namespace, policies: Sequence[Policy], changes: Sequence[Change]) -> None:
    default = scorer(options.scorer)
    data = _load(options)
    endpoint = await _connect(options)
    store = _store(options, endpoint, data)
    try:
        refused = await field.measure(endpoint, data, policies, changes, store, _asking(options))
        cells, findings = field.summarise(data, policies, changes, store, default)
    finally:
        store.close()
        await endpoint.close()
    results = field.FieldResults(run=_facts(options, endpoint), cells=cells, findings=findings, not_offered=refused)
    write_json(options.out / "field.json", results)
    field.write_csv(options.out / "field.csv", results)
    (options.out / "field.html").write_text(field.render(results))
    for finding in findings:
        print(
            f"{finding.subject} reads as {finding.reading} to {finding.policy}: "
            f"{finding.tokens_ratio:.2f} times the tokens"
        )
    for name, reason in refused.items():
        print(f"{name}: not offered by this endpoint: {reason}")
    print(f"wrote {options.out}/field.html, field.json, field.csv")


def _convert(options: argparse.Namespace) -> None:
    try:
        found = _converted(options)
    except KeyError as error:
        raise ValueError(f"not a file of {options.benchmark}: {error} is missing") from error
    print(f"wrote {items.write_jsonl(options.out, found)} questions to {options.out}")


def _converted(options: argparse.Namespace) -> list[Item]:
    first: Path = options.files[0]
    match options.benchmark:
        case "vqav2":
            if len(options.files) != 2:
                raise ValueError("vqav2 takes two files: questions and annotations")
            return vqa.load_vqav2(first, options.files[1], options.images.resolve())
        case "textvqa":
            return vqa.load_textvqa(first, options.images.resolve())
        case "gqa":
            return gqa.load(first, options.images.resolve())
        case "pope":
            return pope.load(options.files, options.images.resolve())
        case _:
            return mmbench.load(first)


def _load(options: argparse.Namespace) -> list[Item]:
    return items.load(options.data, seed=options.seed, count=options.count, kinds=options.kinds)


async def _connect(options: argparse.Namespace) -> Endpoint:
    key = os.environ.get("OPENAI_API_KEY", "none")
    endpoint = Endpoint(options.endpoint, options.model, api_key=key, timeout=options.timeout)
    await endpoint.connect()
    return endpoint


def _store(options: argparse.Namespace, endpoint: Endpoint, data: Sequence[Item]) -> Store:
    manifest = {
        "model": endpoint.model,
        "data": options.data,
        "digest": items.digest(data),
        "seed": options.seed,
        "suffix": options.suffix,
        "system": options.system,
        "max_tokens": options.max_tokens,
        "offer": {"tokens": dict(endpoint.offer.tokens), "taus": dict(endpoint.offer.taus)},
    }
    return Store(options.out, manifest)


def _asking(options: argparse.Namespace) -> Asking:
    return Asking(options.max_tokens, options.suffix, options.system, options.concurrency, options.seed)


def _facts(options: argparse.Namespace, endpoint: Endpoint) -> dict[str, Any]:
    return {
        "model": endpoint.model,
        "data": options.data,
        "seed": options.seed,
        "count": options.count,
        "kinds": options.kinds,
        "suffix": options.suffix,
        "max_tokens": options.max_tokens,
        "concurrency": options.concurrency,
        "scorer": options.scorer,
        "factors": dict(endpoint.offer.tokens),
        "taus": dict(endpoint.offer.taus),
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _calibration(options: argparse.Namespace, data: Sequence[Item]) -> tuple[str, Any]:
    """Where the pictures for token targets are from, and a function that loads them."""
    if options.calibration:
        return options.calibration, lambda: items.read_jsonl(Path(options.calibration))
    if options.data.startswith("builtin:"):
        count = measure.CALIBRATION_PICTURES
        return f"{options.data}, split {CALIBRATION_SPLIT!r}", lambda: items.load(
            options.data, seed=options.seed, count=count, kinds=options.kinds, split=CALIBRATION_SPLIT
        )
    return "the pictures asked about (no answers are used)", lambda: data


def _not_offered(policy: Policy, reason: str) -> PolicyResult:
    return PolicyResult(
        name=policy.name, family=policy.family, reference=policy.reference, status="not offered", reason=reason
    )


def _tell(results: Results, folder: Path) -> None:
    width = max(len(policy.name) for policy in results.policies)
    for policy in results.policies:
        if policy.accuracy is None:
            print(f"{policy.name:<{width}}  not offered by this endpoint: {policy.reason}")
            continue
        tokens = "" if policy.visual_tokens is None else f"{policy.visual_tokens:7.1f} tokens"
        low, high = policy.accuracy.low, policy.accuracy.high
        errors = f", {policy.errors} errors" if policy.errors else ""
        print(f"{policy.name:<{width}}  {policy.accuracy.value:6.1%} ({low:.1%} to {high:.1%}) {tokens}{errors}")
    for target in results.targets:
        print(f"{'met   ' if target.passed else 'missed'}  {target.name}: {target.measured} (target {target.target})")
    print(f"wrote {folder}/report.html, results.json, results.csv", file=sys.stderr)
