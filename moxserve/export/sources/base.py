"""What a source gives: a complete, verified SavedModel in a directory, and what is known about it. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from moxserve.errors import UsageError, did_you_mean
from moxserve.export.manifest import Source, Verification
from moxserve.types import DEFAULT_SIGNATURE, PREDICT_METHOD, Signature, TensorSpec

__all__ = ["Gathered", "OpenSource", "StagedModel", "find_scores", "main_signature"]

_SCORE_NAMES = ("scores", "probabilities", "logits")


@dataclass(frozen=True)
class StagedModel:
    """A SavedModel that was verified against where it came from.

    Attributes:
        signatures: by key.
        main: key of the signature that variants are made of.
        rows: real inputs of `main` by alias, `[n, ...]` each; empty without samples.
        expected: the source's answers to them by alias, `[n, ...]` each: from the model as it was, not from the
            SavedModel. Outputs without a batch dimension are left out.
        labels: `[n]` whole numbers, the right class of each row; None when they are not known.
        scores: alias of the `[n, classes]` floating-point output of `main` whose largest entry is the model's choice;
            empty without one.
        verification: how it compared.
        source: where it came from, for the manifest.
        notes: what the user should know, one sentence each.
        requests: key -> real inputs by alias, `[n, ...]` each, of every signature for which there are some, `main`
            included: what warmup records can be made of. Serialized tf.Examples where a signature takes these.
        metadata: what the source's own manifest carried, for the new one; empty when it had none.
        op_libraries: shared objects with custom operations that the model needs, as paths relative to its directory.
    """

    signatures: Mapping[str, Signature]
    main: str
    rows: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    scores: str
    verification: Verification
    source: Source
    notes: tuple[str, ...] = ()
    requests: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    op_libraries: tuple[str, ...] = ()

    @property
    def row_count(self) -> int:
        """How many real rows there are."""
        return len(next(iter(self.rows.values()))) if self.rows else 0


class OpenSource(Protocol):
    """A source that has been read and found good, ready to be staged."""

    @property
    def version(self) -> int | str:
        """Number or name that the model asks for; -1 for the next free number."""
        ...

    def stage(self, directory: str) -> StagedModel:
        """Write a complete SavedModel into an empty directory and compare it with the source.

        Raises:
            ExportError: it could not be written.
            VerificationError: it answers differently.
        """
        ...


@dataclass
class Gathered:
    """Rows of the main signature and the answers to them, put together from the chunks that were compared.

    Attributes:
        inputs: chunks by alias.
        outputs: chunks by alias.
        note: why there are no rows, or not all; empty when there is nothing to tell.
    """

    inputs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    note: str = ""
    _stopped: bool = False

    def add(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Add a chunk, as long as the chunks can be put together."""
        if self._stopped:
            return
        rows = {len(a) if a.ndim else 0 for a in inputs.values()}
        odd = [alias for alias, parts in self.inputs.items() if parts[0].shape[1:] != inputs[alias].shape[1:]]
        if len(rows) != 1 or 0 in rows:
            self._stop("its inputs have no common batch dimension: no rows for variants and warmup")
            self.inputs.clear()
            self.outputs.clear()
        elif odd:
            self._stop(f"input {odd[0]!r} varies in shape: variants and warmup get the first rows only")
        else:
            self._append(next(iter(rows)), inputs, outputs)

    def _stop(self, note: str) -> None:
        self._stopped, self.note = True, note

    def _append(self, rows: int, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        first = not self.inputs
        for alias, values in inputs.items():
            self.inputs.setdefault(alias, []).append(values)
        fitting = {
            alias: values
            for alias, values in outputs.items()
            if values.ndim
            and len(values) == rows
            and (first or (alias in self.outputs and self.outputs[alias][0].shape[1:] == values.shape[1:]))
        }
        self.outputs = {alias: [*self.outputs.get(alias, ()), values] for alias, values in fitting.items()}

    def rows(self) -> dict[str, np.ndarray]:
        """Return the inputs by alias, `[n, ...]` each."""
        return {alias: np.concatenate(parts) for alias, parts in self.inputs.items()}

    def expected(self, signature: Signature) -> dict[str, np.ndarray]:
        """Return the outputs by alias, `[n, ...]` each.

        Args:
            signature: that answered; where its batch is free, an output of fixed length has that of a chunk by chance.
        """
        free = any(spec.shape and spec.shape[0] is None for spec in signature.inputs.values())
        fixed = {a for a, spec in signature.outputs.items() if free and spec.shape and spec.shape[0] is not None}
        return {alias: np.concatenate(parts) for alias, parts in self.outputs.items() if alias not in fixed}


def main_signature(signatures: Mapping[str, Signature], asked: str = "", *, any_will_do: bool = False) -> str:
    """Choose the signature that variants are made of.

    Args:
        signatures: by key.
        asked: key that the user named; empty takes `serving_default`, else the only predict signature.
        any_will_do: nothing depends on the choice: no variants and no samples.

    Raises:
        UsageError: there is no such key, or nothing says which.
    """
    if asked:
        if asked not in signatures:
            raise UsageError(f"there is no signature {asked!r}; {did_you_mean(asked, signatures)}")
        return asked
    if DEFAULT_SIGNATURE in signatures:
        return DEFAULT_SIGNATURE
    predicts = [key for key, s in signatures.items() if s.method in (PREDICT_METHOD, "")] or list(signatures)
    if len(predicts) == 1 or any_will_do:
        return min(predicts)
    raise UsageError(
        f"the model has the signatures {', '.join(sorted(signatures))}, and none is {DEFAULT_SIGNATURE!r}",
        hint="say which one counts: --signature KEY",
    )


def find_scores(signature: Signature, known: str | None = None, *, labelled: bool = False) -> str:
    """Return the alias of the output that holds `[batch, classes]` scores; empty when there is none.

    Args:
        signature: the main one.
        known: what the model says itself.
        labelled: the right classes of the rows are known, so that there must be scores: the only output that can hold
            some does, whatever it is called.
    """
    if known and known in signature.outputs:
        return known
    able = [alias for alias, spec in signature.outputs.items() if _can_be_scores(spec)]
    for name in _SCORE_NAMES:
        if name in able:
            return name
    return able[0] if labelled and len(able) == 1 else ""


def _can_be_scores(spec: TensorSpec) -> bool:
    return "float" in spec.dtype.name and spec.shape is not None and len(spec.shape) == 2 and spec.shape[1] != 1
