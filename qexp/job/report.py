"""The report of a job: one HTML file that needs nothing else, to read, print and keep.

No script, no link, no font, no image from elsewhere. It holds released and public things only.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from qexp._digits import rounded_down, rounded_up
from qexp._files import atomic_write_bytes
from qexp.finetune import FineTuneResult, Schedule
from qexp.job._prediction import predicted
from qexp.job._svg import line_chart

__all__ = ["render_report", "write_report"]

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1c1c1c; --soft: #595959; --back: #ffffff;
  --panel: #f4f6f8; --rule: #c9ced4; --blue: #1f5fa8; --orange: #b3430f; --red: #a01515; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --soft: #b0b6bc; --back: #16181b;
  --panel: #22262b; --rule: #464d55; --blue: #7db4ee; --orange: #f0a173; --red: #ff9c9c; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.3rem; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.9rem 0.2rem 0;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
td.number, th.number { text-align: right; overflow-wrap: normal; }
td.number { white-space: nowrap; }
.wide { overflow-x: auto; }
.statement { background: var(--panel); border-left: 4px solid var(--blue); padding: 0.7rem 1rem; }
.warning { border-left-color: var(--red); color: var(--red); font-weight: 600; }
.soft { color: var(--soft); }
code { font: 0.88em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); }
.chart { width: 100%; max-width: 42rem; height: auto; display: block; }
.chart text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.chart .grid { stroke: var(--rule); stroke-width: 0.7; }
.chart .axis { stroke: var(--soft); } .chart .bar { stroke: var(--blue); stroke-width: 1.4; }
.chart .level { stroke: var(--orange); stroke-width: 1.4; stroke-dasharray: 6 4; }
.chart .line { fill: none; stroke: var(--blue); stroke-width: 2; }
.chart .mark { fill: var(--blue); }
@media print { :root { --text: #000; --soft: #333; --back: #fff; --panel: #fff; --rule: #999;
    --blue: #1f5fa8; --orange: #b3430f; --red: #a01515; }
  body { max-width: none; margin: 0; font-size: 11pt; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""

_STOPPED: Final = {
    "finished": "All rounds of the schedule were drawn.",
    "ledger empty": "The ledger had not enough left for the next round, so the job stopped there. "
    "The release is what was paid for.",
    "diverged": "A step left the range of the weights' numbers. Released are the weights before "
    "it; a smaller step size may help.",
    "interrupted": "The job was interrupted.",
}


def write_report(
    path: str | os.PathLike[str],
    result: FineTuneResult,
    schedule: Schedule,
    plan: Mapping[str, Any] | None,
    document: Mapping[str, Any],
) -> None:
    """Write the report, atomically.

    Parameters
    ----------
    path : path-like
    result : FineTuneResult
    schedule : Schedule
    plan : mapping or None
        As ``Plan.describe`` gives it.
    document : mapping
        What certificate.json holds.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    atomic_write_bytes(path, render_report(result, schedule, plan, document).encode())


def render_report(
    result: FineTuneResult,
    schedule: Schedule,
    plan: Mapping[str, Any] | None,
    document: Mapping[str, Any],
) -> str:
    """Give the report as HTML; parameters as for :func:`write_report`."""
    release, certificate = result.release, document["certificate"]
    warning = "" if release.generator_is_secure else " warning"
    body = [
        "<h1>Private fine-tuning: report</h1>",
        f'<p class="statement{warning}">{html.escape(release.statement)}</p>',
        "<h2>Privacy in numbers</h2>",
        _pairs(
            "What the release costs, all rounds together",
            [
                ("ε", rounded_up(release.epsilon, 6)),
                ("δ", rounded_up(release.delta, 6)),
                ("μ (Gaussian differential privacy)", rounded_up(release.mu, 8)),
                ("neighbouring data sets", _relation(release.neighboring_relation)),
                ("protected unit", str(certificate.get("unit_of_privacy", "record"))),
                ("number of them, public", f"{release.n_records}"),
                ("noise over clipping norm", rounded_down(release.noise_multiplier, 6)),
                ("source of the noise", str(certificate["generator"])),
            ],
        ),
        "<h2>What was done</h2>",
        f"<p>{html.escape(_STOPPED[result.stopped_because])} {result.rounds_done} of "
        f"{schedule.rounds} round(s) are in the release. A round clips every record's gradient "
        "in the public curvature's units, adds the gradients up, adds noise, and steps.</p>",
        _pairs("Schedule, public", _flat(document["schedule"])),
        _pairs("Model, public", _flat(certificate["public_inputs"].get("model") or {})),
        *_rounds(result),
        *_plan(plan),
        *_ledger(document.get("ledger")),
        "<h2>Digests and software</h2>",
        "<p>SHA-256 of the public inputs and of the released weights. No digest of private "
        "records is made: it would let anyone test a guess of them.</p>",
        _pairs("Public inputs", _flat(_without(certificate["public_inputs"], "model", "schedule"))),
        _pairs(
            "Release", [("weights", str(certificate["weights"])), ("job", certificate["job_id"])]
        ),
        _pairs("Software", _flat(certificate["software"])),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>Private fine-tuning: report</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _relation(name: str) -> str:
    return {
        "replace_special": "one is replaced by a null record (replace_special)",
        "replace_one": "one is replaced by any other (replace_one)",
    }[name]


def _rounds(result: FineTuneResult) -> list[str]:
    history = result.history
    rounds = [float(numbers["round"]) for numbers in history]
    charts = [
        ("mu_so_far", "μ spent", "Privacy spent so far, μ, after every round"),
        ("noise_to_signal", "noise / noisy sum", "Expected noise over the noisy sum, every round"),
        ("step_norm", "step length", "Length of every round's step in weight space"),
    ]
    parts = ["<h2>Round by round</h2>"]
    for key, label, title in charts:
        values = [float(numbers[key]) for numbers in history]
        what = f"{title}: from {values[0]:.4g} in the first round to {values[-1]:.4g} in the last."
        chart = line_chart(
            rounds,
            values,
            name=key,
            title=title,
            description=what,
            x_label="round",
            y_label=label,
        )
        parts.append(f"<figure>{chart}<figcaption>{html.escape(what)}</figcaption></figure>")
    columns = [
        ("round", "round"),
        ("mu", "μ"),
        ("mu_so_far", "μ so far"),
        ("noise_to_signal", "noise / noisy sum"),
        ("step_norm", "step length"),
        ("expected_utility_loss", "expected utility loss"),
        ("expected_mean_loss", "expected mean loss"),
    ]
    parts.append(
        _table(
            "Numbers of every round, all of them released",
            [name for _, name in columns],
            [[_number(numbers[key]) for key, _ in columns] for numbers in history],
        )
    )
    return parts


def _plan(plan: Mapping[str, Any] | None) -> list[str]:
    if plan is None:
        return []
    made = predicted(plan)
    name = made.name[0].upper() + made.name[1:]
    what = (
        f"{name} that the plan predicted at several ε on shifted public records, mean and "
        f"standard deviation. At this job's ε: {made.after:.4g}{made.unit}; before fine-tuning: "
        f"{made.before:.4g}{made.unit}. The private domain's own may lie elsewhere."
    )
    chart = line_chart(
        [epsilon for epsilon, _, _ in made.curve],
        [mean for _, mean, _ in made.curve],
        name="curve",
        title=f"Predicted {made.name} against ε",
        description=what,
        x_label=f"ε at δ = {plan['target_delta']:g}",
        y_label=f"{made.label}, on surrogates",
        spread=[deviation for _, _, deviation in made.curve],
        level=(made.before, "before"),
        log_x=True,
    )
    rows = [
        [f"{epsilon:g}", f"{mean:.4g}", f"{deviation:.2g}"]
        for epsilon, mean, deviation in made.curve
    ]
    return [
        "<h2>What was to be expected</h2>",
        f"<figure>{chart}<figcaption>{html.escape(what)}</figcaption></figure>",
        _table("The curve in numbers", ["ε", made.label, "deviation"], rows),
        f'<p class="soft">Chosen out of {len(plan["table"])} schedules on '
        f"{len(plan['surrogates'])} shifts of public records: "
        f"{html.escape('; '.join(plan['surrogates']))}.</p>",
    ]


def _ledger(ledger: Mapping[str, Any] | None) -> list[str]:
    if ledger is None:
        return [
            "<h2>Ledger</h2>",
            "<p>This job used no ledger: what other jobs spent on the same records is not known "
            "here.</p>",
        ]
    rows = [
        ("μ spent, all jobs", rounded_up(ledger["mu_spent"], 8)),
        ("μ budget", rounded_down(ledger["mu_budget"], 8)),
        ("neighbouring data sets", str(ledger["neighboring_relation"])),
        ("protected unit", str(ledger["unit_of_privacy"])),
        ("lines", str(ledger["lines"])),
        ("checksum of the last line", str(ledger["head"])),
    ]
    return ["<h2>Ledger</h2>", _pairs("When this job had paid", rows)]


def _without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name} ")
        elif value is not None:
            text = ", ".join(map(_number, value)) if isinstance(value, list) else _number(value)
            rows.append((f"{prefix}{name}".replace("_", " "), text))
    return rows


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _pairs(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{_text(value)}</td></tr>\n'
        for name, value in rows
    )
    if not cells:
        return ""
    return f"<table><caption>{html.escape(caption)}</caption>\n<tbody>\n{cells}</tbody></table>"


def _text(value: str) -> str:
    escaped = html.escape(value)
    return f"<code>{escaped}</code>" if len(value) == 64 and value.isalnum() else escaped


def _table(caption: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col" class="number">{html.escape(name)}</th>' for name in names)
    cells = "".join(
        "<tr>" + "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in row) + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="wide"><table><caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{cells}</tbody></table></div>"
    )
