"""How far answers may be off by precision: the one place that exports and servers take their limits from.

From runs of ResNet-50 in every format (SQNR of float rewrites 100 dB and more, of 16 bits about 45, of int8 about 18):
a whole network adds up many small differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from moxserve.export.facts import Tolerance

__all__ = ["EQUAL_SHARES", "TOLERANCES", "TOP1_LEAST", "equal_share_for", "lossy", "most_lost_rows", "tolerance_for"]

TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(rel_l2=1e-4),
    # Eight bits of significand: a deep network is off by a hundredth or two in its scores, and in none of its choices.
    "bfloat16": Tolerance(rel_l2=3e-2),
    "float16": Tolerance(rel_l2=1e-2),
    "dynamic": Tolerance(rel_l2=0.2),
    "int8": Tolerance(rel_l2=0.2),
}
# Of outputs that are no real numbers, such as the number of a class: the share that must be equal.
EQUAL_SHARES: Mapping[str, float] = {
    "float32": 1.0, "bfloat16": 0.95, "float16": 0.95, "dynamic": 0.75, "int8": 0.75,
}  # fmt: skip
# Share of rows whose first choice must be the source's: a rewrite in the same precision changes none.
TOP1_LEAST: Mapping[str, float] = {"float32": 1.0}
_LOSSY = frozenset(("bfloat16", "dynamic", "int8"))


def tolerance_for(precision: str) -> Tolerance:
    """Return what the arithmetic of a precision allows; empty means float32."""
    return TOLERANCES[precision or "float32"]


def equal_share_for(precision: str) -> float:
    """Return which share of values that are no real numbers must be equal; empty means float32."""
    return EQUAL_SHARES[precision or "float32"]


def lossy(precision: str) -> bool:
    """Tell whether a precision costs accuracy by nature, so that the loss is limited and not the distance."""
    return precision in _LOSSY


def most_lost_rows(max_drop: float, rows: int) -> int:
    """Return how many of some rows may be lost: the share in whole rows, rounded up, as half a row cannot be lost."""
    return math.ceil(max_drop * rows - 1e-9)
