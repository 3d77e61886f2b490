"""The page of a run: targets, curve, policies, comparisons, kinds of question and case studies."""

import base64
from collections.abc import Sequence
from html import escape

from evals.cases import OUTCOMES, Case
from evals.report import html
from evals.report.plot import quality_against_tokens
from evals.results import KindResult, PolicyResult, Results


def render(results: Results, cases: Sequence[Case], primary: str) -> str:
    """The page as HTML.

    Args:
        primary: the DFMR policy that targets and case studies are about.
    """
    model = str(results.run.get("model", "model"))
    parts = [f"<h1>What visual-token compression costs: {escape(model)}</h1>", _facts(results)]
    if results.targets:
        parts += ["<h2>Targets</h2>", _targets(results)]
    if figure := quality_against_tokens(results):
        parts += [
            "<h2>Quality against tokens</h2>",
            f"<figure>{figure}<figcaption>Bars are 95 % bootstrap intervals. The dashed line is the uncompressed "
            "model. Controls of one DFMR policy stand at its mean tokens, drawn slightly apart.</figcaption></figure>",
        ]
    parts += ["<h2>Policies</h2>", _policies(results)]
    if results.comparisons:
        parts += ["<h2>DFMR against its controls at equal mean tokens</h2>", _comparisons(results)]
    parts += ["<h2>By kind of question</h2>", _kinds(results)]
    if any(policy.official for policy in results.policies):
        parts += ["<h2>Official figures of the benchmark</h2>", _official(results)]
    if cases:
        parts += ["<h2>Case studies</h2>", _gallery(cases, primary)]
    return html.page(f"Evaluation of {model}", parts)


def _facts(results: Results) -> str:
    shown = {
        "data": results.run.get("data"),
        "questions": max((p.questions for p in results.policies), default=0),
        "seed": results.run.get("seed"),
        "thresholds calibrated on": results.run.get("calibration"),
        "measured": results.run.get("finished"),
    }
    facts = (f"<span>{escape(k)} <b>{escape(str(v))}</b></span>" for k, v in shown.items() if v is not None)
    return f'<div class="facts">{"".join(facts)}</div>'


def _targets(results: Results) -> str:
    rows = []
    for target in results.targets:
        mark = '<span class="good">met</span>' if target.passed else '<span class="bad">missed</span>'
        measured = "not measured" if target.measured is None else f"{target.measured:g}"
        rows.append([escape(target.name), escape(target.target), measured, mark])
    return html.table(["", "target", "measured", ""], rows)


def _policies(results: Results) -> str:
    head = ["policy", "visual tokens<br>per picture", "of full", "accuracy", "minus full, points"]
    rows = []
    for policy in results.policies:
        if policy.status != "measured":
            reason = (
                f'<td class="left wrap" colspan="7"><small>not measured: {escape(_short(policy.reason))}</small></td>'
            )
            rows.append([escape(policy.name), reason])
            continue
        rows.append(
            [
                escape(policy.name),
                _tokens(policy),
                html.percent(policy.share),
                html.interval(policy.accuracy),
                html.points(policy.minus_full),
                "&ndash;" if policy.ttft_p50 is None else f"{1000 * policy.ttft_p50:.0f} ms",
                _factors(policy),
                str(policy.errors),
            ]
        )
    note = "Intervals are 95 %, by paired bootstrap over pictures; coloured ones are clear of zero."
    return f'<p class="note">{note}</p>' + html.table([*head, "TTFT p50", "pictures by factor", "errors"], rows)


def _tokens(policy: PolicyResult) -> str:
    if policy.visual_tokens is None and policy.prompt_tokens is not None:
        return f"<small>prompt:</small> {policy.prompt_tokens:.1f}"
    return html.number(policy.visual_tokens)


def _factors(policy: PolicyResult) -> str:
    total = sum(policy.factors.values())
    shares = (f"{s}:&nbsp;{100 * count / total:.0f}&nbsp;%" for s, count in policy.factors.items())
    return f'<td class="wrap"><small>{" &middot; ".join(shares)}</small></td>' if total else "&ndash;"


def _comparisons(results: Results) -> str:
    rows = []
    for compared in results.comparisons:
        tokens = f"{html.number(compared.policy_tokens)} and {html.number(compared.control_tokens)}"
        equal = "" if compared.matched else ' <span class="bad">not equal</span>'
        if compared.errors:
            equal += f' <span class="bad">{compared.errors} failed</span>'
        rows.append(
            [
                escape(compared.policy),
                f'<td class="left">{escape(compared.control)}</td>',
                tokens + equal,
                html.points(compared.difference),
            ]
        )
    return html.table(["DFMR", "control", "mean tokens", "DFMR minus control, points"], rows)


def _kinds(results: Results) -> str:
    measured = [policy for policy in results.policies if policy.status == "measured"]
    kinds = sorted({kind for policy in measured for kind in policy.kinds})
    rows = []
    for kind in kinds:
        cells = [_kind_cell(policy.kinds.get(kind)) for policy in measured]
        questions = max((p.kinds[kind].questions for p in measured if kind in p.kinds), default=0)
        rows.append([f"{escape(kind)} <small>{questions}</small>", *cells])
    rows.append(["<b>all</b>", *(f"<b>{html.percent(p.accuracy.value if p.accuracy else None)}</b>" for p in measured)])
    note = "Accuracy in per cent, visual tokens per picture below. Coloured: clearly above or below full."
    head = [
        "kind",
        *(escape(policy.name).replace("@", "@<wbr>").replace("@<wbr>dfmr", "<br>@dfmr") for policy in measured),
    ]
    return f'<p class="note">{note}</p>' + html.table(head, rows)


def _kind_cell(found: KindResult | None) -> str:
    if found is None:
        return "&ndash;"
    style = html.verdict(found.minus_full) if found.minus_full else ""
    tokens = "" if found.visual_tokens is None else f"<br><small>{found.visual_tokens:.0f}</small>"
    spread = f"{100 * found.accuracy.low:.1f} to {100 * found.accuracy.high:.1f}"
    bold = " sure" if style else ""
    return f'<td class="{style}{bold}" title="95 %: {spread}">{100 * found.accuracy.value:.1f}{tokens}</td>'


def _official(results: Results) -> str:
    names = list(dict.fromkeys(name for policy in results.policies for name in policy.official))
    scored = [policy for policy in results.policies if policy.official]
    rows = [[escape(name), *(html.number(policy.official.get(name), 3) for policy in scored)] for name in names]
    return html.table(["", *(escape(policy.name) for policy in scored)], rows)


def _gallery(cases: Sequence[Case], primary: str) -> str:
    parts = [
        f'<p class="note">Full detail against {escape(primary)}, chosen at random within each outcome. '
        "A cell of the grid is one visual token.</p>"
    ]
    for outcome, meaning in OUTCOMES.items():
        members = [case for case in cases if case.outcome == outcome]
        if members:
            parts.append(f'<h3>{outcome.capitalize()}: <small>{meaning}</small></h3><div class="cases">')
            parts += [_case(case) for case in members]
            parts.append("</div>")
    return "".join(parts)


def _case(case: Case) -> str:
    images = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">' for data in case.thumbnails
    )
    factors = ", ".join("regions" if s is None else f"factor {s}" for s in case.ours.factors)
    kept = (
        "" if case.ours.kept is None else f" <small>{case.ours.kept} tokens{', ' + factors if factors else ''}</small>"
    )
    spent = "" if case.full.kept is None else f" <small>{case.full.kept} tokens</small>"
    expected = ", ".join(dict.fromkeys(case.item.answers))
    return (
        f'<div class="case"><div class="pictures">{images}</div>'
        f'<div class="text"><b>{escape(_short(case.item.question))}</b> '
        f"<small>{escape(case.item.kind)}</small><dl><dt>expected</dt><dd>{escape(_short(expected))}</dd>"
        f"<dt>full</dt><dd>{_answer(case.full.answer)}{spent}</dd>"
        f"<dt>compressed</dt><dd>{_answer(case.ours.answer)}{kept}</dd></dl></div></div>"
    )


def _answer(text: str) -> str:
    return escape(_short(text)) or "<i>nothing</i>"


def _short(text: str, length: int = 160) -> str:
    text = "".join(character if character.isprintable() else " " for character in text).strip()
    return text if len(text) <= length else text[: length - 1] + "…"
