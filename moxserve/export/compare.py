"""Comparing outputs with a reference: element by element, with figures and the worst element. NumPy only.

Floating-point outputs pass when `|got - expected| <= atol + rtol * |expected|` for each element, NaN meeting NaN;
everything else must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import VerificationError
from moxserve.export.manifest import OutputCheck

__all__ = ["Checker", "Comparison"]


@dataclass
class Comparison:
    """How one output of one signature compares with the reference, over all rows seen so far.

    Attributes:
        max_abs: largest absolute difference.
        max_rel: largest difference relative to a reference that is itself larger than atol.
        differing: elements outside the tolerance.
        total: elements seen.
        worst: index and the two values of the element furthest outside; empty when all are inside.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    differing: int = 0
    total: int = 0
    worst: str = ""
    _excess: float = field(default=0.0, repr=False)

    def add(self, got: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float], first_row: int) -> None:
        """Compare one chunk.

        Args:
            got: what the artifact answered.
            expected: what the reference answered, of the same shape.
            tolerance: atol and rtol.
            first_row: index of the chunk's first row among all rows, for the message.
        """
        self.total += expected.size
        if not expected.size:
            return
        if expected.dtype.kind in "fcV":
            difference, excess = self._float_excess(got, expected, tolerance)
        else:
            unequal = np.asarray(got != expected)
            difference = excess = _distance(got, expected, unequal)
        self.differing += int(np.count_nonzero(excess > 0))
        self.max_abs = max(self.max_abs, float(difference.max()))
        top = float(excess.max())
        if top > self._excess:
            self._excess = top
            index = np.unravel_index(int(np.argmax(excess)), expected.shape)
            where = [int(i) for i in index]
            if where:
                where[0] += first_row
            self.worst = f"at {where} it is {_show(got[index])} and should be {_show(expected[index])}"

    def _float_excess(
        self, got: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        atol, rtol = tolerance
        wide = np.complex128 if expected.dtype.kind == "c" else np.float64
        a, b = got.astype(wide), expected.astype(wide)
        with np.errstate(invalid="ignore", over="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            difference = np.where(same, 0.0, np.abs(a - b))
            # A NaN or an infinity on one side only is as wrong as can be.
            difference = np.where(np.isnan(difference), np.inf, difference)
            size = np.where(np.isfinite(b), np.abs(b), 0.0)
        large = size > max(atol, np.finfo(np.float32).tiny)
        if large.any():
            self.max_rel = max(self.max_rel, float((difference[large] / size[large]).max()))
        return difference, np.maximum(difference - (atol + rtol * size), 0.0)


def _distance(got: np.ndarray, expected: np.ndarray, unequal: np.ndarray) -> np.ndarray:
    """Return how far apart integers are; 1 for strings and booleans that differ."""
    if expected.dtype.kind not in "iu":
        return unequal.astype(np.float64)
    return np.where(unequal, np.maximum(np.abs(got.astype(np.float64) - expected.astype(np.float64)), 1.0), 0.0)


def _show(value: Any) -> str:
    if isinstance(value, (bytes, str)):
        return f"{value!r:.80}"
    return f"{value:.9g}" if isinstance(value, np.floating) else str(value)


class Checker:
    """Collects comparisons, and fails at the end with the worst one.

    Args:
        atol: absolute tolerance.
        rtol: relative tolerance.
    """

    def __init__(self, atol: float, rtol: float) -> None:
        self.tolerance = (atol, rtol)
        self.results: dict[tuple[str, str, str], Comparison] = {}

    def compare(
        self,
        place: tuple[str, str],
        got: Mapping[str, np.ndarray],
        expected: Mapping[str, np.ndarray],
        first_row: int,
    ) -> None:
        """Compare the outputs of one signature with what a reference gave for the same rows.

        Args:
            place: signature and reference, for the message.
            got: by alias.
            expected: by alias; each must be among `got`.
            first_row: index of the first row.

        Raises:
            VerificationError: an output is missing or has another shape or element type.
        """
        signature, reference = place
        for alias, want in expected.items():
            where = f"signature {signature!r}, output {alias!r}"
            if alias not in got:
                raise VerificationError(f"{where}: the artifact does not give it; the {reference} does")
            have = got[alias]
            if have.shape != want.shape or have.dtype != want.dtype:
                raise VerificationError(
                    f"{where}: the artifact gives {have.dtype}{list(have.shape)}, "
                    f"the {reference} {want.dtype}{list(want.shape)}"
                )
            result = self.results.setdefault((signature, alias, reference), Comparison())
            result.add(have, want, self.tolerance, first_row)

    def raise_if_different(self, hint: Callable[[str], str]) -> None:
        """Fail when an output is outside the tolerance.

        Args:
            hint: gives advice for the reference that disagrees.

        Raises:
            VerificationError: names signature, output, figures and the worst element.
        """
        bad = {key: c for key, c in self.results.items() if c.differing}
        if not bad:
            return
        (signature, output, reference), worst = max(bad.items(), key=lambda item: item[1]._excess)
        atol, rtol = self.tolerance
        raise VerificationError(
            f"signature {signature!r}, output {output!r} differs from the {reference}: {worst.worst} "
            f"({worst.differing} of {worst.total} values differ; max abs error {worst.max_abs:.3g}, "
            f"max rel error {worst.max_rel:.3g}, tolerance atol {atol:g} + rtol {rtol:g})",
            hint=hint(reference),
        )

    def checks(self) -> tuple[OutputCheck, ...]:
        """Return the figures per signature and output, the worst reference counting."""
        merged: dict[tuple[str, str], tuple[float, float]] = {}
        for (signature, output, _), c in self.results.items():
            before = merged.get((signature, output), (0.0, 0.0))
            merged[signature, output] = (max(before[0], c.max_abs), max(before[1], c.max_rel))
        return tuple(
            OutputCheck(signature=s, output=o, max_abs_error=a, max_rel_error=r) for (s, o), (a, r) in merged.items()
        )
