"""The status page: what is served, how well, and a form that asks a model something.

`sample` makes a request that fits a signature, `figures` reads the metrics, `render` writes the HTML, `routes` answers
requests. `page.css` and `page.js` are sent as they are. The page needs no script to be read; with it, it keeps itself
up to date and sends the form.
"""

from __future__ import annotations

from moxserve.serving.rest.page.routes import StatusPage

__all__ = ["StatusPage"]
