"""Wrappers around optimizers, as pipelines write them: fields are named as the options of `get_optimizer_wrapper_fn`,
and have their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from moxserve.config.models import Patterns, StrictModel, told_apart_by

__all__ = ["KINDS", "Wrapper", "wrap"]


class _Wrapper(StrictModel):
    """A wrapper around an optimizer."""

    wrapper: str = Field(description="Which one: batch_gradients, clip, dgc, easgd, lars, loss_scale or simple_sync.")

    def options(self) -> dict[str, Any]:
        """The options for `get_optimizer_wrapper_fn`."""
        return self.model_dump(exclude={"wrapper"})


class BatchGradients(_Wrapper):
    """Gradients of several steps make one update."""

    num_batches: int = Field(ge=1, description="Steps an update.")
    sync_on_apply: bool = Field(default=False, description="Workers that step apart meet at each update.")


class Clip(_Wrapper):
    """Gradients that are too long are cut."""

    limit: float = Field(gt=0, description="Largest length, or largest absolute value.")
    clip_type: Literal["norm", "global_norm", "value"] = Field(default="global_norm", description="What is limited.")


class Dgc(_Wrapper):
    """Deep gradient compression (Lin et al., 2017)."""

    sparsity: float | list[float] = Field(
        default=[0.75, 0.9375, 0.984375, 0.996, 0.999], description="Share that is not sent, a number per epoch."
    )
    steps_per_epoch: int | None = Field(default=None, ge=1, description="Needed for several numbers.")
    momentum: float | None = Field(default=None, ge=0, lt=1, description="Null: that of the optimizer, 0.9 for sgd.")
    momentum_type: Literal["vanilla", "nesterov"] | None = Field(default=None, description="Null: the optimizer's.")
    momentum_factor_masking: bool = Field(default=True, description="Forget the momentum where something was sent.")
    clip_norm: float = Field(default=0.0, ge=0, description="Limit for a worker's gradients; 0 is off.")
    min_size: int = Field(default=1, ge=1, description="Variables with fewer elements are sent whole.")


class Easgd(_Wrapper):
    """Elastic averaging (Zhang et al., 2014)."""

    period: int = Field(default=10, ge=1, description="Steps between two moves.")
    alpha: float | None = Field(default=None, gt=0, lt=1, description="Share of the distance; null: beta / workers.")
    beta: float = Field(default=0.9, gt=0, description="See alpha.")


class Lars(_Wrapper):
    """Layer-wise adaptive rate scaling (You et al., 2017)."""

    ratio: float = Field(default=0.001, gt=0, description="Trust ratio.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 weight decay, which the loss then must not have.")
    epsilon: float = Field(default=1e-9, ge=0, description="Added to the denominator.")
    skip: Patterns | None = Field(
        default=None, description="Regular expressions of variables to leave alone; null: those of one dimension."
    )


class LossScale(_Wrapper):
    """Keeps gradients of half-precision layers from becoming zero."""

    scale: float | None = Field(default=None, gt=0, description="Factor; null: 1024, 32768 where dynamic.")
    dynamic: bool = Field(default=False, description="Halved at overflow, doubled after good updates.")
    window: int = Field(default=2000, ge=1, description="Good updates until it is doubled.")
    minimum: float = Field(default=1.0, gt=0, description="It is not halved below this.")


class SimpleSync(_Wrapper):
    """Workers that step apart meet at each step."""


KINDS: Mapping[str, type[_Wrapper]] = {
    "batch_gradients": BatchGradients,
    "clip": Clip,
    "dgc": Dgc,
    "easgd": Easgd,
    "lars": Lars,
    "loss_scale": LossScale,
    "simple_sync": SimpleSync,
}
if TYPE_CHECKING:
    Wrapper = _Wrapper
else:
    Wrapper = told_apart_by("wrapper", KINDS)


def wrap(optimizer: Any, wrappers: list[Wrapper]) -> Any:
    """Put wrappers around an optimizer, the first one first."""
    from moxserve.tensorflow import get_optimizer_wrapper_fn

    for one in wrappers:
        optimizer = get_optimizer_wrapper_fn(one.wrapper, optimizer, **one.options())()
    return optimizer
