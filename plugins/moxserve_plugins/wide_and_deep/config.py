"""Parameters of `wide_and_deep`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moxserve.errors import did_you_mean
from moxserve.pipeline.slots import InputBundle, ModelPlugin
from moxserve.tabular.columns import Column
from moxserve.tabular.declared import column_problems

__all__ = ["WideAndDeep"]


class WideAndDeep(ModelPlugin):
    """A linear model and a network on feature columns, trained together (Cheng et al., 2016); or one of them alone."""

    columns: dict[str, Column] = Field(
        min_length=1, description="Feature columns by name; their kinds and keys are told in docs/tabular.md."
    )
    wide: list[str] = Field(default=[], description="Columns of the linear part: categories and numbers.")
    deep: list[str] = Field(default=[], description="Columns of the network: numbers, ranges, indicators, embeddings.")
    hidden_units: list[Annotated[int, Field(ge=1)]] = Field(
        default=[64, 32], description="Widths of the network's layers."
    )
    activation: Literal["relu", "elu", "tanh", "sigmoid"] = Field(default="relu", description="After each of them.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of the units that are left out while training.")
    seed: int | None = Field(
        default=None, ge=0, description="Seed of the first weights and of dropout; by default they differ each time."
    )
    num_classes: int | None = Field(
        default=None, ge=2, description="Number of classes; by default as many as the input has labels."
    )
    class_weights: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="Weight of a class in the loss, by its name; 1 for those not named."
    )

    @model_validator(mode="after")
    def _has_a_part(self) -> WideAndDeep:
        if not self.wide and not self.deep:
            raise ValueError("expected columns in wide, deep or both")
        return self

    def check(self) -> Iterable[tuple[str, str]]:
        """Look at what goes together: columns with columns, and parts with columns."""
        problems = [(f"columns.{key}", message) for key, message in column_problems(self.columns)]
        return [*problems, *self._part_problems("wide", self.wide), *self._part_problems("deep", self.deep)]

    def _part_problems(self, part: str, names: list[str]) -> Iterator[tuple[str, str]]:
        fitting = [n for n, c in self.columns.items() if (c.dense if part == "deep" else _is_wide(c))]
        for position, name in enumerate(names):
            if name not in self.columns:
                yield f"{part}.{position}", f"no column {name!r}; {did_you_mean(name, fitting, 20)}"
            elif name not in fitting:
                advice = "; make an indicator or embedding of it" if part == "deep" else ""
                kind = self.columns[name].kind
                yield f"{part}.{position}", f"{name!r} is of kind {kind}, which is nothing for the {part} part{advice}"
            elif name in names[:position]:
                yield f"{part}.{position}", f"{name!r} is there twice"

    def describe(self) -> str:
        """Say what it is made of."""
        layers = ", ".join(map(str, self.hidden_units)) or "no layers"
        parts = [f"wide: {', '.join(self.wide)}"] if self.wide else []
        parts += [f"deep ({layers}): {', '.join(self.deep)}"] if self.deep else []
        return "; ".join(parts)

    def build(self, data: InputBundle) -> Callable[..., Any]:
        """Return the model_fn; see ModelPlugin."""
        from moxserve_plugins.wide_and_deep.build import model_function

        return model_function(self, data)


def _is_wide(column: Any) -> bool:
    return bool(column.categorical or column.kind == "numeric")
