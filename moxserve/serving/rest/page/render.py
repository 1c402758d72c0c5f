"""The HTML of the page. Whatever a user or a model named is escaped; nothing is fetched from elsewhere.

Elements with `data-live` are replaced by the script when it has fetched the page again; what a person may be typing in
lies outside of them. `data-count` is what the script computes rates from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

from moxserve.serving.rest.page.figures import Latency, ModelFigures
from moxserve.serving.rest.page.sample import Sample

__all__ = ["ModelView", "PageView", "VersionView", "render"]

_RUNTIMES = {"tensorflow": "TensorFlow", "onnx": "ONNX Runtime", "openvino": "OpenVINO", "tflite": "TensorFlow Lite"}
_AVAILABLE = "AVAILABLE"


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version in the table.

    Attributes:
        version: number.
        state: such as `AVAILABLE`.
        error: what went wrong; empty for nothing.
        labels: that lead to it.
        platform: runtime that serves it; empty when it is not loaded.
        variant: form of the model that runs; empty likewise, or when the runtime knows only one.
    """

    version: int
    state: str
    error: str = ""
    labels: Sequence[str] = ()
    platform: str = ""
    variant: str = ""


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model on the page.

    Attributes:
        name: that requests use.
        versions: highest first.
        serving: version that a request without a version reaches; None for none.
        signatures: of that version: how it is written, by key.
        samples: requests that fit them, by key.
    """

    name: str
    versions: Sequence[VersionView] = ()
    serving: int | None = None
    signatures: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PageView:
    """Everything on the page.

    Attributes:
        version: of moxserve.
        host: name of the machine.
        uptime_s: since the ports were opened.
        models: in the order of the configuration.
        figures: by model.
        metrics_path: where the page of metrics is; empty for nowhere.
    """

    version: str
    host: str
    uptime_s: float
    models: Sequence[ModelView]
    figures: Mapping[str, ModelFigures]
    metrics_path: str = ""


def render(view: PageView) -> str:
    """Write the page."""
    cards = "".join(_card(model, view.figures.get(model.name, ModelFigures()), view.uptime_s) for model in view.models)
    if not cards:
        cards = '<p class="empty">No model is configured. The server takes its first configuration over gRPC.</p>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(_title(view))}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="ui/page.css">
<script src="ui/page.js" defer></script>
</head>
<body>
<header>
<div class="bar">
<h1>moxserve</h1>
<p class="where"><span>{escape(view.host)}</span> {_live("uptime", f"up {_duration(view.uptime_s)}")} <span>{escape(view.version)}</span></p>
<nav aria-label="Raw data"><a href="v1/models">Models</a>{_metrics_link(view)}</nav>
<p class="refresh" hidden><label><input type="checkbox" id="refresh" checked> Live</label> <span id="link" role="status"></span></p>
</div>
</header>
<main>
<section aria-label="All models" class="tiles" data-live="totals">{_tiles(view)}</section>
<noscript><p class="hint">Reload the page for newer figures. Sending a request from here needs JavaScript.</p></noscript>
<div id="models">{cards}</div>
</main>
</body>
</html>
"""  # noqa: E501 - a line break would be text


def _title(view: PageView) -> str:
    serving = sum(model.serving is not None for model in view.models)
    return f"moxserve: {serving} of {len(view.models)} models serve"


def _metrics_link(view: PageView) -> str:
    return f' <a href="{escape(view.metrics_path.lstrip("/"))}">Metrics</a>' if view.metrics_path else ""


def _live(key: str, text: str, css: str = "") -> str:
    return f'<span data-live="{escape(key)}"{f" class={css}" if css else ""}>{escape(text)}</span>'


def _tiles(view: PageView) -> str:
    serving = sum(model.serving is not None for model in view.models)
    succeeded = sum(figures.succeeded for figures in view.figures.values())
    failed = sum(figures.failures for figures in view.figures.values())
    faults = any(figures.faults for figures in view.figures.values())
    tiles = [
        ("Models that serve", f"{serving} / {len(view.models)}", "" if serving == len(view.models) else "bad"),
        ("Requests answered", _number(succeeded), ""),
        ("Requests failed", _number(failed), "bad" if faults else ""),
    ]
    body = "".join(
        f'<div class="tile {css}"><p>{name}</p><strong>{escape(text)}</strong></div>' for name, text, css in tiles
    )
    return body + (
        f'<div class="tile"><p data-rate-label>Requests a second, on average</p><strong data-rate="all" '
        f'data-count="{succeeded + failed}">{_rate(succeeded + failed, view.uptime_s)}</strong></div>'
    )


def _card(model: ModelView, figures: ModelFigures, uptime_s: float) -> str:
    name = escape(model.name)
    path = f"v1/models/{quote(model.name, safe='')}"
    return f"""
<article data-model="{name}" data-version="{"" if model.serving is None else model.serving}" aria-label="Model {name}">
<div class="head"><h2>{name}</h2>{_chips(model)}<p class="links"><a href="{escape(path)}">Status</a> <a href="{escape(path)}/metadata">Metadata</a></p></div>
<div class="columns">
<div class="left">{_versions(model)}{_figures(model, figures, uptime_s)}</div>
<div class="right">{_form(model)}</div>
</div>
</article>"""  # noqa: E501 - as above


def _chips(model: ModelView) -> str:
    current = next((v for v in model.versions if v.version == model.serving), None)
    if current is None:
        chips = '<span class="chip bad">no version serves</span>'
    else:
        chips = f'<span class="chip good">serves version {current.version}</span>'
        if current.platform:
            chips += f' <span class="chip">{escape(_runtime(current))}</span>'
    return f'<p class="chips" data-live="{escape(model.name)}/chips">{chips}</p>'


def _runtime(version: VersionView) -> str:
    """Say what runs a version, such as `OpenVINO int8`; a SavedModel in TensorFlow goes without saying."""
    name = _RUNTIMES.get(version.platform, version.platform)
    form = version.variant.removeprefix(version.platform).lstrip("_")
    return name if form in ("", "saved_model") else f"{name} {form}"


def _versions(model: ModelView) -> str:
    rows = "".join(_version(version) for version in model.versions)
    if not rows:
        rows = '<tr><td colspan="4">No version was found yet. The server\'s log tells where it looks.</td></tr>'
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Version", "State", "Labels", "Runs on"))
    return (
        f'<div class="scroll" data-live="{escape(model.name)}/versions"><table>'
        f'<caption class="unseen">Versions</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _version(version: VersionView) -> str:
    css = "good" if version.state == _AVAILABLE else "bad" if version.error else ""
    labels = " ".join(f'<span class="label">{escape(label)}</span>' for label in version.labels)
    row = (
        f'<tr><th scope="row">{version.version}</th><td class="state {css}">{escape(version.state)}</td>'
        f"<td>{labels}</td><td>{escape(_runtime(version))}</td></tr>"
    )
    if version.error:
        row += f'<tr class="error"><td colspan="4">{escape(version.error)}</td></tr>'
    return row


def _figures(model: ModelView, figures: ModelFigures, uptime_s: float) -> str:
    total = figures.succeeded + figures.failures
    name = escape(model.name)
    facts = [
        ("Answered", _number(figures.succeeded), ""),
        ("Failed", _number(figures.failures), "bad" if figures.faults else ""),
    ]
    body = "".join(f"<div><dt>{term}</dt><dd class='{css}'>{text}</dd></div>" for term, text, css in facts)
    body += f"<div><dt>A second</dt><dd data-rate='{name}' data-count='{total}'>{_rate(total, uptime_s)}</dd></div>"
    reasons = ", ".join(f"{count:,} {escape(status)}" for status, count in sorted(figures.failed.items()))
    why = f'<p class="hint">{reasons}</p>' if reasons else ""
    return (
        f'<div data-live="{name}/figures"><dl class="facts">{body}</dl>{why}{_latencies(figures)}</div>'
        f'<div class="spark" data-spark="{name}" hidden><p class="hint">Requests a second, last two minutes</p>'
        '<svg viewBox="0 0 120 24" preserveAspectRatio="none" aria-hidden="true"></svg></div>'
    )


def _latencies(figures: ModelFigures) -> str:
    if not figures.latency.count:
        return '<p class="hint">No request was answered yet.</p>'
    told = [("Request", figures.latency), ("Model run", figures.run)]
    rows = "".join(_numbers(name, latency) for name, latency in told if latency.count)
    return (
        '<div class="scroll"><table class="numbers"><caption>Latency, ms</caption><thead><tr><td></td>'
        '<th scope="col">p50</th><th scope="col">p95</th><th scope="col">p99</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _numbers(name: str, latency: Latency) -> str:
    cells = "".join(f"<td>{_ms(value)}</td>" for value in (latency.p50_ms, latency.p95_ms, latency.p99_ms))
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'


def _form(model: ModelView) -> str:
    if model.serving is None:
        return '<p class="hint">A request can be sent when a version serves.</p>'
    name = escape(model.name)
    written = "".join(f"<li><code>{escape(text)}</code></li>" for text in model.signatures.values())
    known = f'<details class="signatures"><summary>Signatures</summary><ul>{written}</ul></details>'
    options = "".join(
        f'<option value="{escape(key)}" data-sample="{escape(sample.text)}" data-note="{escape(sample.note)}">'
        f"{escape(key)}</option>"
        for key, sample in model.samples.items()
    )
    if not options:
        return f'<p class="hint">This version has no signature to ask.</p>{known}'
    first = next(iter(model.samples.values()))
    height = min(12, max(4, first.text.count("\n") + 2))
    return f"""
<form data-path="v1/models/{escape(quote(model.name, safe=""))}:predict">
<p class="field"><label>Signature <select name="signature">{options}</select></label></p>
<p class="field"><label>Request <textarea name="body" rows="{height}" spellcheck="false" autocomplete="off">{escape(first.text)}</textarea></label></p>
<p class="note hint">{escape(first.note)}</p>
<p class="send"><button type="submit" disabled>Send to {name}</button> <span class="took" role="status"></span></p>
<pre class="answer" tabindex="0" aria-label="Answer of {name}" hidden></pre>
</form>
{known}"""  # noqa: E501 - as above


def _number(count: int) -> str:
    return f"{count:,}"


def _rate(count: int, seconds: float) -> str:
    rate = count / max(seconds, 1.0)
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 or not count else f"{rate:.2g}"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2])
