"""The HTML page of a load test: locust's own report, headed by what it cannot know."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from moxserve_loadtests.limits import Limit
from moxserve_loadtests.results import LoadResult, table

__all__ = ["SATURATED", "with_summary"]

SATURATED = (
    "the generator was saturated: these figures tell of it, not of the server; use fewer users, larger batches, "
    "or several processes (locust -f … --processes -1)"
)
_STYLE = (
    "font-family:system-ui,sans-serif;max-width:1180px;margin:1.5rem auto;padding:1rem 1.5rem;border:1px solid #bbb;"
    "border-radius:8px;background:#fff;color:#222"
)


def with_summary(page: str, result: LoadResult, limits: Sequence[Limit]) -> str:
    """Put target, exact percentiles, the generator's own load and the limits at the head of locust's page.

    Args:
        page: locust's HTML.
        result: the figures.
        limits: what was to hold.
    """
    rows = [("payload", result.source), *table(result)]
    rows += [
        ("limit", limit.describe(result) + (" (broken)" if limit.broken(result) else " (held)")) for limit in limits
    ]
    rows += [("failure", f"{count:,} × {message}") for message, count in result.errors.items()]
    cells = "".join(
        f"<tr><th style='text-align:left;padding:.15rem 1.5rem .15rem 0;vertical-align:top'>{escape(name)}</th>"
        f"<td>{escape(text)}</td></tr>"
        for name, text in rows
    )
    warning = f"<p style='color:#b00020;font-weight:600'>{escape(SATURATED)}</p>" if result.saturated else ""
    title = f"moxserve load test: {result.model} at {result.target}, {result.users} users"
    heading = f"<h2 style='margin-top:0'>{escape(title)}</h2>"
    section = f"<section style='{_STYLE}'>{heading}{warning}<table>{cells}</table></section>"
    head, body, tail = page.partition("<body>")
    return f"{head}{body}{section}{tail}" if body else section + page
