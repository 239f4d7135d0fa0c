"""The report as one HTML file: no script, nothing loaded from anywhere, readable in light and dark.

The page is well-formed XML as well. Every string that comes from a model, the data or the options is escaped, and the
page's own content security policy forbids scripts and requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from os import PathLike
from pathlib import Path

from onnx_obd.atomic import write_atomically
from onnx_obd.records import Report
from onnx_obd.report import plots
from onnx_obd.report.frontier import TITLES, frontier_note, frontier_plot, frontier_rows
from onnx_obd.report.quantities import (
    MISSING,
    count,
    duration,
    file_size,
    median,
    percent,
    plural,
    printable,
    significant,
    span,
)
from onnx_obd.report.summary import (
    before_after,
    deletes_weights,
    headline,
    latency_remarks,
    prediction_verdict,
    ranked,
    shipped_because,
    size,
    size_change,
    total_seconds,
    used_by,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'"

GLOSSARY = {
    "saliency": "The predicted rise of the loss if one weight is deleted: ½ h w², with h the second derivative of the "
    "loss with respect to the weight w (Optimal Brain Damage: LeCun, Denker and Solla, 1990).",
    "sparsity": "The fraction of zeros among the prunable weights.",
    "loss": "The objective named in the summary, the mean per sample.",
    "agreement": "The fraction of held-back samples whose most probable class is that of the original, with Wilson's "
    "interval.",
    "output change": "||y − y₀|| / ||y₀ − mean(y₀)|| over the held-back outputs: 0 % is equal, 100 % is as far off as "
    "a constant.",
    "held back": "Samples that no saliency was computed from. The candidates are compared on them, so the figures of "
    "the best of many candidates lean slightly to the good side.",
    "latency ratio": "Original over exported, both timed interleaved in one process. An interval that includes 1 is no "
    "measurable difference.",
}


def to_html(report: Report) -> str:
    """The report as a page."""
    title = _text(f"{Path(report.model).name}: pruning report")
    style = resources.files("onnx_obd.report").joinpath("style.css").read_text("utf-8")
    sections = (
        _head(report),
        _summary(report),
        _notes(report),
        _figures(report),
        _frontier(report),
        _candidates(report),
        _rounds(report),
        _weights(report),
        _provenance(report),
        _glossary(),
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="generator" content="onnx-obd {_text(report.version)}"/>
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{chr(10).join(section for section in sections if section)}
</main>
</body>
</html>
"""


def write_html(report: Report, path: str | PathLike[str]) -> Path:
    """Write ``to_html`` to ``path``, whole or not at all.

    Raises:
        ExportError: the file cannot be written.
    """
    return write_atomically(path, to_html(report).encode("utf-8"))


def _text(value: object) -> str:
    return escape(printable(value))


def _head(report: Report) -> str:
    if deletes_weights(report):
        gone = percent(report.sparsity), "of the prunable weights are zero"
    else:
        gone = percent(1 - report.parameters_after / report.parameters), "of the parameters went with units"
    tiles = [gone, (size_change(report.bytes_before, report.bytes_after), "file, on disk")]
    exported = report.exported
    if exported.agreement is not None:
        tiles.append((percent(exported.agreement), "of held-back answers unchanged"))
    else:
        tiles.append((percent(exported.relative_error), "output change, of the outputs' spread"))
    if report.latency is not None:
        speedup = report.latency.speedup
        verdict = "no measurable difference" if speedup.low <= 1 <= speedup.high else "original over exported"
        tiles.append((f"{median(speedup)}×", f"latency ratio {span(speedup)}: {verdict}"))
    blocks = "".join(
        f'<div class="tile"><b>{_text(value)}</b><span>{_text(what)}</span></div>' for value, what in tiles
    )
    return f"""<header>
<h1>{_text(Path(report.model).name)}</h1>
<p class="path">{_text(report.model)} → {_text(report.output)}</p>
<p class="lead">{_text(headline(report))} {_text(shipped_because(report))}</p>
<div class="tiles">{blocks}</div>
</header>"""


def _summary(report: Report) -> str:
    body = _table(["", "before", "after", ""], [list(row) for row in before_after(report)], numeric=(1, 2))
    remarks = "".join(f'<p class="fine">{_text(remark)}</p>' for remark in latency_remarks(report))
    return _section("Before and after", body + remarks)


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    items = "".join(f"<li>{_text(note)}</li>" for note in report.notes)
    return _section("Notes", f'<ul class="notes">{items}</ul>')


def _figures(report: Report) -> str:
    hidden = sum(weight.prunable for weight in report.weights) - plots.MAX_TENSORS
    tensors = f"The {plots.MAX_TENSORS} largest tensors; the table below has all. " if hidden > 0 else ""
    tensors += "Grey: zero before pruning." if any(weight.sparsity_before for weight in report.weights) else ""
    verdict = prediction_verdict(report.rounds)
    prediction = (
        "What is predicted has the gradient and the cross terms between weights that go together, and leaves out "
        "higher orders alone; the sum of saliencies, ½ Σ h w², leaves these out too. Dotted: a factor of two. Rounds "
        "with a change that is not positive cannot be drawn here."
    )
    samples = f"On {plural(report.num_held_back, 'held-back sample')}, with 95 % intervals."
    stored = f"{plural(report.sparse_tensors, 'tensor')} stored as sparse initializers."
    latency = plots.latency_plot(report.latency) if report.latency else ""
    costs = [
        _figure("File size", plots.size_plot(report.bytes_before, report.bytes_after), stored),
        _figure("Latency in onnxruntime", latency, "Medians with 95 % intervals."),
    ]
    losses = plots.loss_plot(report.rounds, report.dense)
    agreement = plots.agreement_plot(report.candidates, report.shipped, report.num_held_back)
    figures = [
        _figure("Latency against quality", frontier_plot(report.frontier), frontier_note(report)),
        _figure("Prediction", plots.prediction_plot(report.rounds), f"{verdict} {prediction}"),
        _figure("Loss against sparsity", losses, f"{report.method}; {report.objective}."),
        _figure("Candidates: loss", plots.candidate_loss_plot(report.candidates, report.shipped), "Lower is better."),
        _figure("Candidates: agreement", agreement, samples),
        _figure("Sparsity of each tensor", plots.sparsity_plot(report.weights), tensors),
        f'<div class="stack">{"".join(costs)}</div>' if any(costs) else "",
    ]
    return _section("Figures", f'<div class="figures">{"".join(figures)}</div>') if any(figures) else ""


def _figure(title: str, svg: str, caption: str) -> str:
    if not svg:
        return ""
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{_text(title)}</h3>{svg}{below}</figure>"


def _candidates(report: Report) -> str:
    order = ranked(report.candidates)
    rows = [
        [
            each.method + (" (shipped)" if each.method == report.shipped else ""),
            percent(each.sparsity),
            significant(each.loss),
            percent(each.agreement),
            percent(each.accuracy),
            percent(each.relative_error),
            duration(each.seconds) if each.seconds else MISSING,
        ]
        for each in order
    ]
    titles = ["candidate", "sparsity", "loss", "agreement", "accuracy", "output change", "time"]
    classes = ["shipped" if each.method == report.shipped else "" for each in order]
    samples = plural(report.num_held_back, "held-back sample")
    note = f'<p class="fine">On {_text(samples)}. {_text(shipped_because(report))}</p>'
    return _section("Candidates", _table(titles, rows, numeric=range(1, 7), classes=classes) + note) if rows else ""


def _frontier(report: Report) -> str:
    if len(report.frontier) < 2:
        return ""
    classes = ["shipped" if point.shipped else "" for point in report.frontier]
    rows = _table(list(TITLES), frontier_rows(report), numeric=range(8), classes=classes)
    return _section("On the way to the speed", rows + f'<p class="fine">{_text(frontier_note(report))}</p>')


def _rounds(report: Report) -> str:
    rows = [
        [
            str(number),
            percent(each.sparsity),
            significant(each.predicted_together),
            significant(each.predicted),
            significant(each.measured_scoring),
            significant(each.measured_held_back),
            significant(each.loss_held_back),
            duration(each.seconds),
        ]
        for number, each in enumerate(report.rounds, start=1)
    ]
    titles = ["round", "sparsity", "predicted change", "½ Σ h w² alone", "on scoring", "on held back"]
    titles += ["held-back loss", "time"]
    verdict = f'<p class="fine">{_text(prediction_verdict(report.rounds))}</p>'
    return _section(f"Rounds of {report.method}", _table(titles, rows, numeric=range(1, 8)) + verdict) if rows else ""


def _weights(report: Report) -> str:
    rows = [
        [
            weight.name,
            "×".join(map(str, weight.shape)) or "scalar",
            count(size(weight)),
            used_by(weight),
            percent(weight.sparsity_before),
            percent(weight.sparsity),
            "prunable" if weight.prunable else f"not prunable: {weight.reason or 'no reason given'}",
        ]
        for weight in report.weights
    ]
    titles = ["tensor", "shape", "parameters", "used by", "zeros before", "zeros after", ""]
    return _section("Weights", _table(titles, rows, numeric=(1, 2, 4, 5))) if rows else ""


def _provenance(report: Report) -> str:
    facts = [
        ("onnx-obd", report.version),
        ("method", report.method),
        ("objective", report.objective),
        ("samples for scoring", count(report.num_scoring)),
        ("samples held back", count(report.num_held_back)),
        ("mirror against onnxruntime, before pruning", significant(report.mirror_error, 2)),
        ("mirror against onnxruntime, exported model", significant(report.export_error, 2)),
        ("bytes before", f"{count(report.bytes_before)} ({file_size(report.bytes_before)})"),
        ("bytes after", f"{count(report.bytes_after)} ({file_size(report.bytes_after)})"),
        *report.provenance.items(),
    ]
    stages = [[stage, duration(seconds)] for stage, seconds in report.seconds.items() if stage != "total"]
    stages.append(["total", duration(total_seconds(report))])
    options = [[name, MISSING if value in (None, (), []) else str(value)] for name, value in report.options.items()]
    blocks = [_table(["provenance", ""], [[name, str(value)] for name, value in facts])]
    if options:
        blocks.append(_table(["option", ""], options))
    blocks.append(_table(["stage", "time"], stages, numeric=(1,)))
    return _section("How this was made", f'<div class="columns">{"".join(blocks)}</div>')


def _glossary() -> str:
    terms = "".join(f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in GLOSSARY.items())
    return f"<details><summary>How to read this</summary><dl>{terms}</dl></details>"


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n{body}\n</section>"


def _table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = (), classes: Sequence[str] = ()
) -> str:
    """Rows of unescaped cells; the first column heads its row. ``classes`` is one style class for each row."""
    css = ["number" if column in numeric else "text" for column in range(len(titles))]
    head = "".join(f'<th scope="col" class="{css[i]}">{_text(title)}</th>' for i, title in enumerate(titles))
    body = []
    for number, row in enumerate(rows):
        first = f'<th scope="row">{_text(row[0])}</th>'
        cells = "".join(f'<td class="{css[i]}">{_text(cell)}</td>' for i, cell in enumerate(row) if i)
        kind = f' class="{classes[number]}"' if classes and classes[number] else ""
        body.append(f"<tr{kind}>{first}{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
