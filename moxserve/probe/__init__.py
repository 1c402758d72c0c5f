"""Tries a form of a model in a process of its own: what it answers to real rows, how fast it is, what memory it takes.

A process each, since a runtime that crashes, hangs or keeps memory must hurt neither the export nor the figures of the
next one; one after another, since two that are measured at once measure each other. `probe` is the caller's side;
`python -m moxserve.probe` is the other one. Models are loaded by the server's own backends.
"""

from __future__ import annotations

from moxserve.probe.result import ProbeOptions, ProbeResult
from moxserve.probe.run import probe

__all__ = ["ProbeOptions", "ProbeResult", "probe"]
