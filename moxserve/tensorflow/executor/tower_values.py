"""Values of several towers as one: how many rows each tower has in a step, and means that are weighted by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.spec import ModeKeys

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.branch import Branch, Tower

__all__ = ["BranchValues", "TowerValues", "mean_values", "tower_rows", "tower_values", "tower_weights"]


@dataclass(frozen=True)
class TowerValues:
    """Values of one tower.

    Attributes:
        values: name: tensor.
        rows: scalar float tensor: the rows that they are of, 0 where the step had none for the tower; None where that
            is not known, and every step counts the same.
    """

    values: Mapping[str, Any]
    rows: Any = None


def tower_values(values: Sequence[Mapping[str, Any]], towers: Sequence[Tower]) -> list[TowerValues]:
    """Put values of the towers beside their rows."""
    return [TowerValues(given, tower_rows(tower)) for given, tower in zip(values, towers, strict=True)]


def tower_rows(tower: Tower) -> Any:
    """Return how many rows a step has for a tower, a scalar float32 tensor; None where the first input has no batch
    dimension, and there always is one.
    """
    first = tower.inputs[0]
    with tf1.device("/cpu:0"), tf1.name_scope("rows"):
        known = first.shape.rank not in (0, None)
        rows = tf.cast(tf.shape(first)[0], tf.float32) if known else None
        if tower.present is None:
            return rows
        present = tf.cast(tower.present, tf.float32)
        return present if rows is None else rows * present


def tower_weights(towers: Sequence[Tower]) -> list[Any]:
    """Return for each tower its share of a step's rows, as a multiple of the towers' mean: scalar float32 tensors.

    None for each where all towers have the same number of rows in every step.
    """
    if len(towers) == 1 or _equal(towers):
        return [None] * len(towers)
    with tf1.device("/cpu:0"), tf1.name_scope("weights"):
        rows = [tower_rows(tower) for tower in towers]
        counts = [tf.constant(1.0) if count is None else count for count in rows]
        total = tf.add_n(counts)
        return [tf.math.divide_no_nan(count * float(len(towers)), total) for count in counts]


def _equal(towers: Sequence[Tower]) -> bool:
    sizes = {tower.inputs[0].shape[0] if tower.inputs[0].shape.rank else 1 for tower in towers}
    return all(tower.present is None for tower in towers) and len(sizes) == 1 and None not in sizes


def mean_values(towers: Sequence[TowerValues]) -> dict[str, Any]:
    """Average values over towers, in the graph, each weighted by its rows.

    Args:
        towers: scalar tensors of each, with the same names.
    """
    if len(towers) == 1:
        return dict(towers[0].values)
    with tf1.device("/cpu:0"), tf1.name_scope("tower_means"):
        rows = [tf.constant(1.0) if tower.rows is None else tower.rows for tower in towers]
        total = tf.add_n(rows)
        return {
            name: tf.math.divide_no_nan(
                tf.add_n([tf.cast(t.values[name], tf.float32) * r for t, r in zip(towers, rows, strict=True)]), total
            )
            for name in towers[0].values
        }


class BranchValues:
    """What a run reports of its branch.

    Args:
        branch: of the run's own mode.
        first_only: whether console lines and summaries show the first tower's values, or the mean over all; the means
            of an evaluation are over all towers, always.
    """

    def __init__(self, branch: Branch, first_only: bool) -> None:
        self._branch = branch
        towers, evaluating = branch.towers, branch.mode == ModeKeys.EVAL
        self.info = tower_values([tower.spec.log_info for tower in towers], towers) if evaluating else []
        if len(towers) == 1 or (first_only and not evaluating):
            self.shown = dict(branch.spec.log_info)
        else:
            self.shown = mean_values(self.info or tower_values([tower.spec.log_info for tower in towers], towers))

    @property
    def step(self) -> list[Any]:
        """What a step that does not train computes."""
        what = "log_info" if self._branch.mode == ModeKeys.EVAL else "output_info"
        return [
            tensor for tower in self._branch.towers for tensor in (*getattr(tower.spec, what).values(), *tower.inputs)
        ]

    @property
    def outputs(self) -> list[tuple[Mapping[str, Any], Any]]:
        """The outputs of each tower, and whether a step has them: a scalar bool tensor, None where it always has."""
        return [(tower.spec.output_info, tower.present) for tower in self._branch.towers]
