"""Several heads on one trunk: a ModelSpec of the weighted sum of their losses, which tells and exports each apart.

The counterpart of `tf.contrib.estimator.multi_head`. Losses that train different variables, as a GAN's, are not this:
they are a list in `ModelSpec(loss=[...], var_scopes=[...])`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec, SignatureSpec

__all__ = ["Head", "multi_head"]


@dataclass(frozen=True)
class Head:
    """One objective of a model.

    Args:
        name: of the head; the first part of the names of what it tells, and the name of its signature.
        loss: scalar tensor.
        weight: what the loss counts in the sum: a number of at least 0, or a scalar tensor.
        metrics: name: scalar tensor, told as `NAME/metric`.
        outputs: name: tensor, given as `NAME/output`; in the head's own signature by its name alone.

    Raises:
        ModelSpecError: the name or the weight is none.
    """

    name: str
    loss: Any
    weight: Any = 1.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the name and the weight."""
        if not isinstance(self.name, str) or not self.name or "/" in self.name or not self.name.isprintable():
            raise ModelSpecError(f"mox.Head(name={self.name!r}): expected a name without '/'")
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ModelSpecError(f"mox.Head({self.name!r}, weight={self.weight!r}): expected a number of at least 0")
        if "loss" in self.metrics:
            raise ModelSpecError(
                f"mox.Head({self.name!r}): metrics has the name 'loss', by which the head's loss is told"
            )


def multi_head(
    heads: Sequence[Head],
    inputs: Mapping[str, Any] | None = None,
    *,
    penalty: Any = None,
    hooks: Sequence[Any] | None = None,
    default: str = "",
) -> ModelSpec:
    """Put heads together.

    Args:
        heads: at least one.
        inputs: alias: tensor, what the exported model takes; None exports nothing.
        penalty: scalar that is added to the sum of the losses, such as L2 losses.
        hooks: of the ModelSpec.
        default: name of the head whose signature callers get who name none; empty for all heads' outputs.

    Returns:
        A ModelSpec with the loss `weight * loss` of all heads added up, in `log_info` that sum and each head's loss
        (without its weight) and metrics, in `output_info` all outputs, and a signature for each head that has outputs.

    Raises:
        ModelSpecError: two heads have one name, or there is none.
    """
    names = [head.name for head in heads]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        raise ModelSpecError("multi_head got no head" if not names else f"multi_head got two heads named {twice!r}")
    if default and default not in names:
        raise ModelSpecError(f"multi_head(default={default!r}) is none of the heads {', '.join(names)}")
    total = tf.add_n([tf.cast(head.weight, head.loss.dtype) * head.loss for head in heads], name="heads_loss")
    if penalty is not None:
        total += tf.cast(penalty, total.dtype)
    told = {"loss": total}
    for head in heads:
        told |= {f"{head.name}/{name}": value for name, value in {"loss": head.loss, **head.metrics}.items()}
    outputs = {f"{head.name}/{name}": value for head in heads for name, value in head.outputs.items()}
    export = None
    if inputs is not None:
        signatures = {head.name: SignatureSpec(inputs, head.outputs) for head in heads if head.outputs}
        export = ExportSpec(inputs, outputs, signatures=signatures, default_signature=default)
    return ModelSpec(loss=total, log_info=told, output_info=outputs, export_spec=export, hooks=hooks)
