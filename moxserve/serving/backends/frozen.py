"""A SavedModel inside a version that stands in for the version's own: frozen, transformed, in another precision.

It has signatures of its own, with the same aliases; requests see those of the model (shapes, defaults, metadata), the
session gets the tensors of the variant. Unlike the graphs of other runtimes it needs no conversion between the two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moxserve.export.manifest import TensorNames, Variant
from moxserve.protocol.metadata import signatures_from_map
from moxserve.serving.backends.base import LoadOptions
from moxserve.serving.backends.calls import CallSignature
from moxserve.serving.backends.graph import DoesNotFitError
from moxserve.serving.backends.savedmodel import SavedModelBackend
from moxserve.types import INIT_SIGNATURE, Signature, TensorSpec

__all__ = ["FrozenBackend"]


class FrozenBackend(SavedModelBackend):
    """A SavedModel in `variants/`. See `Backend` for the interface.

    Args:
        version_dir: the version.
        variant: its `path` is a folder.
        options: as of a SavedModel.

    Raises:
        MissingExtraError: TensorFlow is not installed.
        ServingError: TensorFlow cannot load it.
    """

    def __init__(self, version_dir: str, variant: Variant, options: LoadOptions) -> None:
        # It has no variables that could become constants.
        super().__init__(os.path.join(version_dir, variant.path), replace(options, freeze=False))
        self.variant = variant.name

    def stand_in(self, signature_map: Any, declared: Mapping[str, TensorNames], keys: Sequence[str] | None) -> None:
        """Answer through the model's signatures from now on.

        Args:
            signature_map: SignatureDefMap of the model.
            declared: of the manifest; when not empty, only these are served.
            keys: serve no others; None for all that it can.

        Raises:
            DoesNotFitError: it serves none of them; says why.
        """
        known = signatures_from_map(signature_map)
        own = self.signatures
        wanted = [
            key for key in (declared or own) if key in known and key != INIT_SIGNATURE and (keys is None or key in keys)
        ]
        if not wanted:
            has, model = (", ".join(sorted(names)) or "none" for names in (own, known))
            raise DoesNotFitError(f"it serves no signature that is wanted; it has {has}, the model has {model}")
        signatures = {}
        for key in sorted(wanted):
            if key not in own:
                raise DoesNotFitError(f"the manifest says that it serves {key!r}; it has {', '.join(sorted(own))}")
            signatures[key] = _fitted(known[key], own[key], declared.get(key, TensorNames()))
        definitions = signature_map.signature_def
        self.signatures = signatures
        self.signature_defs = signature_map
        self.calls = {key: CallSignature.from_def(s, definitions[key]) for key, s in signatures.items()}


def _fitted(model: Signature, own: Signature, names: TensorNames) -> Signature:
    """Return the model's signature with the tensors of the variant."""
    inputs = _side("input", model.inputs, own.inputs, names.inputs)
    unfed = sorted({s.tensor for s in own.inputs.values()} - {s.tensor for s in inputs.values()})
    if unfed:
        raise DoesNotFitError(f"it has an input more, {unfed[0]!r}, that signature {model.name!r} does not feed")
    return replace(model, inputs=inputs, outputs=_side("output", model.outputs, own.outputs, names.outputs))


def _side(
    kind: str, model: Mapping[str, TensorSpec], own: Mapping[str, TensorSpec], names: Mapping[str, str]
) -> dict[str, TensorSpec]:
    by_tensor = {spec.tensor: spec for spec in own.values()}
    found = {}
    for alias, spec in model.items():
        name = names.get(alias, alias)
        native = own.get(name) or by_tensor.get(name) or by_tensor.get(f"{name}:0")
        if native is None:
            raise DoesNotFitError(f"it has no {kind} for {alias!r}; its {kind}s are {', '.join(sorted(own)) or 'none'}")
        if native.dtype != spec.dtype:
            raise DoesNotFitError(f"{kind} {alias!r}: expected {spec.dtype.name}, it has {native.dtype.name}")
        if spec.shape is not None and native.shape is not None and len(spec.shape) != len(native.shape):
            raise DoesNotFitError(f"{kind} {alias!r}: expected {spec}, it has {native}")
        found[alias] = replace(spec, tensor=native.tensor)
    return found
