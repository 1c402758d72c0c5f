"""One rewrite after another: what each did is looked at, compared with the first graph, and undone when it is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moxserve.errors import ExportError, MoxserveError, VerificationError, first_line
from moxserve.export.transforms.catalogue import By
from moxserve.export.transforms.graph import digests, problem_of, with_nodes

__all__ = ["DEFAULT_LIMIT", "SIMULATED_LIMIT", "Check", "Outcome", "Rewrite", "Step", "Stepper", "TransformResult"]

Outcome = Literal["applied", "nothing to do", "rolled back", "failed, ignored"]
# Tells the relative L2 error of a graph against the first one.
Check = Callable[[Any], float]

# Rounding of float32 through a deep network stays below; anything that is computed wrongly does not.
DEFAULT_LIMIT = 1e-4
# Where quantization is simulated, the last bit of a number may take it to the next of 256 steps.
SIMULATED_LIMIT = 0.02

_COLOCATED = b"loc:@"
_SIMULATED = ("FakeQuant", "QuantizeAndDequantize", "QuantizeV2", "Requantize")


@dataclass(frozen=True)
class Step:
    """What a transform did.

    Attributes:
        name: of the transform.
        arguments: as they were given.
        by: whose implementation ran.
        outcome: what became of the result.
        nodes_before: nodes of the graph that it was given.
        nodes_after: nodes of the graph that it left; as before, if it was undone.
        bytes_before: size of the graph that it was given.
        bytes_after: size of the graph that it left.
        error: relative L2 error of its result against the first graph; None when that was not compared.
        seconds: how long it took, comparison included.
        reason: why there was nothing to do, or why it was undone; empty when there is nothing to say.
    """

    name: str
    arguments: tuple[tuple[str, str], ...]
    by: By
    outcome: Outcome
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    error: float | None = None
    seconds: float = 0.0
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the step as JSON values, as it is written to reports."""
        return {
            "name": self.name,
            "arguments": [list(pair) for pair in self.arguments],
            "by": self.by,
            "outcome": self.outcome,
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "error": self.error,
            "seconds": round(self.seconds, 3),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class TransformResult:
    """A graph and how it came to be.

    Attributes:
        graph_def: the graph.
        steps: what was done, in order.
    """

    graph_def: Any
    steps: tuple[Step, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: a sentence for each step that was undone or failed."""
        how = {"rolled back": "was undone", "failed, ignored": "failed and was left out"}
        told = (step for step in self.steps if step.outcome in how)
        return tuple(f"transform {step.name} {how[step.outcome]}: {step.reason}" for step in told)


@dataclass(frozen=True)
class Rewrite:
    """One thing to do to a graph.

    Attributes:
        name: for messages.
        by: whose implementation runs.
        run: makes the new graph; may leave the old one changed in no way.
        arguments: for the report.
        limit: the error that it may add, where the caller's limit is smaller.
        ignore_errors: go on with the graph before when it fails.
        ordered: the order of nodes is a part of the result.
    """

    name: str
    by: By
    run: Callable[[Any], Any]
    arguments: tuple[tuple[str, str], ...] = ()
    limit: float = 0.0
    ignore_errors: bool = False
    ordered: bool = False


@dataclass
class Stepper:
    """A graph that rewrites are tried on.

    Attributes:
        graph_def: the graph so far.
        inputs: names of the nodes that signatures feed.
        outputs: names of the nodes that they fetch.
        check: tells how wrong a graph is; None to believe every rewrite.
        limit: the error that exact rewrites may make; None for `DEFAULT_LIMIT`, or `SIMULATED_LIMIT` in a graph that
            simulates quantization.
        strict: raise when a result is wrong, instead of undoing it.
        steps: what was done.
    """

    graph_def: Any
    inputs: Sequence[str]
    outputs: Sequence[str]
    check: Check | None
    limit: float | None = None
    strict: bool = False
    steps: list[Step] = field(default_factory=list)
    # What quantizing steps, which are wanted, have made wrong: later ones are judged by what they add.
    _accepted: float = 0.0
    # Of `graph_def`: both take a while for a large graph.
    _size: int = 0
    _digests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Write the graph as every step does, so that only real changes count as such."""
        if any(text.endswith(":0") for node in self.graph_def.node for text in node.input):
            self.graph_def = with_nodes(self.graph_def, self.graph_def.node)
            _tidy(self.graph_def)
        self._size, self._digests = self.graph_def.ByteSize(), digests(self.graph_def)

    def result(self) -> TransformResult:
        """Return the graph as it is now."""
        return TransformResult(self.graph_def, tuple(self.steps))

    def run(self, rewrite: Rewrite) -> None:
        """Try a rewrite, and keep its result if it is right.

        Raises:
            ExportError: it failed.
            VerificationError: its result is wrong, and `strict` is set.
        """
        started = time.monotonic()
        try:
            changed, found = self._changed(rewrite)
        except MoxserveError as error:
            if not rewrite.ignore_errors:
                hint = error.hint or f"{rewrite.name}(ignore_errors=true) goes on without it"
                raise ExportError(f"transform {rewrite.name} failed: {error.message}", hint=hint) from error
            self._record(rewrite, started, "failed, ignored", None, error.message)
            return
        if changed is None:
            self._record(rewrite, started, "nothing to do")
            return
        error_made, reason = self._judge(rewrite, changed)
        if reason:
            if self.strict:
                raise VerificationError(f"transform {rewrite.name}: {reason}")
            self._record(rewrite, started, "rolled back", error_made, reason)
            return
        if rewrite.limit:
            self._accepted = max(self._accepted, error_made or 0.0)
        before = len(self.graph_def.node), self._size
        self.graph_def, self._size, self._digests = changed, changed.ByteSize(), found
        self._record(rewrite, started, "applied", error_made, "", before)

    def _changed(self, rewrite: Rewrite) -> tuple[Any | None, list[bytes]]:
        """Return the new graph, None when it is the old one, and the digests of its nodes.

        Raises:
            MoxserveError: the rewrite failed, or what it made is no graph.
        """
        before = self.graph_def
        changed = rewrite.run(before)
        if changed is before:
            return None, self._digests
        if not changed.versions.producer:  # TensorFlow's tool forgets it
            changed.versions.CopyFrom(before.versions)
        self._keep_inputs(changed)
        _tidy(changed)
        problem = problem_of(changed, before, self.inputs, self.outputs)
        if problem:
            raise ExportError(problem)
        found = digests(changed)
        same = found == self._digests if rewrite.ordered else sorted(found) == sorted(self._digests)
        return (None if same and changed.library == before.library else changed), found

    def _keep_inputs(self, changed: Any) -> None:
        """Put inputs back that nobody needs any more: requests still feed them."""
        names = {node.name for node in changed.node}
        lost = [name for name in self.inputs if name not in names]
        if lost:
            changed.node.extend(node for node in self.graph_def.node if node.name in lost and not node.input)

    def _judge(self, rewrite: Rewrite, changed: Any) -> tuple[float | None, str]:
        """Return how wrong a graph is, and why that is too much; empty when it is not."""
        if self.check is None:
            return None, ""
        try:
            error = float(self.check(changed))
        except Exception as failure:  # noqa: BLE001 - a graph that does not run fails in many ways; told as the reason
            return None, f"the result does not run: {_cause(failure)}"
        allowed = self._accepted + max(self._limit(), rewrite.limit)
        if error <= allowed:
            return error, ""
        return error, f"the result is wrong: relative L2 error {error:.3g}, at most {allowed:.3g} allowed"

    def _limit(self) -> float:
        if self.limit is not None:
            return self.limit
        simulated = any(node.op.startswith(_SIMULATED) for node in self.graph_def.node)
        return SIMULATED_LIMIT if simulated else DEFAULT_LIMIT

    def _record(
        self,
        rewrite: Rewrite,
        started: float,
        outcome: Outcome,
        error: float | None = None,
        reason: str = "",
        before: tuple[int, int] | None = None,
    ) -> None:
        after = len(self.graph_def.node), self._size
        before = before or after
        self.steps.append(
            Step(
                rewrite.name,
                rewrite.arguments,
                rewrite.by,
                outcome,
                before[0],
                after[0],
                before[1],
                after[1],
                error,
                time.monotonic() - started,
                reason,
            )
        )


def _cause(failure: Exception) -> str:
    """Return the line of an error that tells why; XLA's ends with what it was doing."""
    found = (line.strip() for line in str(failure).splitlines() if "nsupported operations" in line)
    return next(found, "") or first_line(failure)


def _tidy(graph_def: Any) -> None:
    """Write first outputs without their number, as everybody does, and forget what TensorFlow would refuse.

    Nodes cannot be put beside others that are gone.
    """
    names = {node.name for node in graph_def.node}
    for node in graph_def.node:
        for i, text in enumerate(node.input):
            if text.endswith(":0"):
                node.input[i] = text[:-2]
        if "_class" in node.attr:
            _keep_places(node, names)


def _keep_places(node: Any, names: set[str]) -> None:
    places = node.attr["_class"].list.s
    kept = [p for p in places if not p.startswith(_COLOCATED) or p[len(_COLOCATED) :].decode() in names]
    if len(kept) == len(places):
        return
    if kept:
        places[:] = kept
    else:
        del node.attr["_class"]
