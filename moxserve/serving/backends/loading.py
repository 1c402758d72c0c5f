"""Which runtime loads a version directory: what the options ask for, out of what the directory holds."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from moxserve.errors import FailedPrecondition, NotFound, did_you_mean
from moxserve.export.facts import Timing
from moxserve.export.figures import judge
from moxserve.export.manifest import Variant
from moxserve.protocol.metadata import signatures_from_map
from moxserve.serving.backends.base import Backend, LoadOptions
from moxserve.serving.backends.choose import Candidate, Candidates, choose, most_precise, names_for
from moxserve.serving.backends.contents import FORMATS, SAVED_MODEL, Contents, look
from moxserve.serving.backends.graph import DoesNotFitError, Graph, GraphBackend, bind, own_signature, signature_map_of
from moxserve.serving.backends.saved_signatures import read_signature_map
from moxserve.serving.backends.variants import VariantBackend
from moxserve.serving.machine import machine
from moxserve.types import INIT_SIGNATURE

__all__ = ["find_variant", "load_variant", "load_version"]

logger = logging.getLogger(__name__)

_TENSORFLOW = "tensorflow"
_TFLITE_FILE = "model.tflite"


def load_version(path: str, options: LoadOptions) -> Backend:
    """Load a version; see `moxserve.serving.backends.load`."""
    contents = look(path)
    formats = _formats(options)
    if options.prefer_tflite and formats & {SAVED_MODEL, "tflite"}:
        preferred = next((v for v in contents.variants if v.path == _TFLITE_FILE), None)
        if preferred is not None:
            return _load_alone(path, preferred, options)
    variants = [v for v in contents.variants if _asked_for(v, formats) and _may_serve(path, v)]
    if contents.graph and SAVED_MODEL in formats:
        if not variants:
            return _load_saved_model(path, options)
        own = contents.own or Variant(name=SAVED_MODEL, format=SAVED_MODEL)
        reference = Candidate(own, lambda _: _load_saved_model(path, options), _told(own, options))
        return _choose(contents, options, reference, variants)
    if not variants:
        if formats >= FORMATS or SAVED_MODEL in formats:
            return _load_saved_model(path, options)  # which says what is wrong with the directory
        raise NotFound(
            f"{path} holds nothing that {' or '.join(sorted(formats))} could serve; it holds {contents}",
        )
    if len(variants) == 1:
        try:
            return _load_variant(contents, variants[0], options, None)
        except DoesNotFitError as error:
            raise FailedPrecondition(f"{path}: {variants[0].path} cannot stand in for the model: {error}") from None
    first = most_precise(variants)
    return _choose(contents, options, _candidate(contents, first, options), [v for v in variants if v is not first])


def load_variant(path: str, variant: Variant | str | None, options: LoadOptions) -> Backend:
    """Load just one form of a version: nothing is chosen, and nothing stands behind it.

    Args:
        path: the version.
        variant: as it is declared, which a staged version is not yet; or a name, as in its manifest or of its folder in
            `variants/`; None for the SavedModel itself.
        options: how; `platform`, `backend` and `prefer_tflite` mean nothing here.

    Raises:
        MissingExtraError: its runtime is not installed.
        NotFound: there is no such variant.
        ServingError: it cannot be loaded, or cannot stand in for the model.
    """
    if variant is None:
        return _load_saved_model(path, options)
    if isinstance(variant, str):
        variant = find_variant(path, variant)
    try:
        backend = _load_variant(look(path), variant, replace(options, platform="", backend=variant.format), None)
    except DoesNotFitError as error:
        raise FailedPrecondition(f"{path}: {variant.path} cannot stand in for the model: {error}") from None
    return backend.main if isinstance(backend, VariantBackend) else backend


def find_variant(path: str, name: str) -> Variant:
    """Return the variant of a name in a version.

    Raises:
        NotFound: there is none.
    """
    variants = look(path).variants
    found = next((v for v in variants if v.name == name), None)
    if found is None:
        raise NotFound(f"{path} has no variant {name!r}; {did_you_mean(name, [v.name for v in variants])}")
    return found


def _formats(options: LoadOptions) -> frozenset[str]:
    """Return the formats that may serve; `saved_model` among them when TensorFlow may."""
    if options.platform not in ("", _TENSORFLOW):
        return frozenset((options.platform,))
    if options.backend == "auto":
        return FORMATS | {SAVED_MODEL}
    return frozenset((SAVED_MODEL if options.backend == _TENSORFLOW else options.backend,))


def _choose(
    contents: Contents, options: LoadOptions, reference: Candidate, variants: Sequence[Variant]
) -> Backend:  # fmt: skip
    facts = {
        "options": repr(replace(options, session_config=b"")),
        "session": options.session_config.hex(),
        "candidates": sorted(v.name for v in variants),
    }
    others = [_candidate(contents, variant, options) for variant in variants]
    return choose(Candidates(contents.path, reference, others, facts))


def _candidate(contents: Contents, variant: Variant, options: LoadOptions) -> Candidate:
    return Candidate(variant, lambda keys: _load_variant(contents, variant, options, keys), _told(variant, options))


def _asked_for(variant: Variant, formats: frozenset[str]) -> bool:
    """Tell whether the options ask for a variant. Who asks for TensorFlow means the SavedModel, and its arithmetic."""
    if formats == {SAVED_MODEL} and variant.precision not in ("", "float32"):
        return False
    return variant.format in formats


def _may_serve(path: str, variant: Variant) -> bool:
    """Tell whether the manifest allows a variant: not switched off, nor further from its source than its limits are."""
    if not variant.enabled:
        return False
    if variant.figures is None:
        return True
    reasons = judge(variant.figures, variant.precision, max_drop=None, tolerance=variant.tolerance)
    if reasons:
        logger.warning(
            "%s: variant %s is not served, by the figures of its manifest: %s", path, variant.name, reasons[0]
        )
    return not reasons


def _told(variant: Variant, options: LoadOptions) -> Timing | None:
    """Return what the manifest measured for one row, if that was on a machine like this one, with as many threads."""
    measured = variant.measured
    if measured is None or measured.machine != machine() or measured.threads != options.intra_op_threads:
        return None
    return measured.at(1)


def _load_saved_model(path: str, options: LoadOptions) -> Backend:
    from moxserve.serving.backends.savedmodel import SavedModelBackend

    return SavedModelBackend(path, options)


def _load_variant(contents: Contents, variant: Variant, options: LoadOptions, keys: Sequence[str] | None) -> Backend:
    """Load a variant behind the SavedModel's signatures, or its own where there is no SavedModel.

    Args:
        contents: of the version.
        variant: to load.
        options: how.
        keys: signatures that it is to serve; None for all that it can.

    Raises:
        MissingExtraError: its runtime is not installed.
        ServingError: it cannot be loaded.
        DoesNotFitError: it cannot stand in for the model.
    """
    if contents.graph:
        signature_map = read_signature_map(contents.path, contents.graph, options.tags)
    elif variant.signatures and contents.signatures:
        signature_map = signature_map_of(contents.signatures)
    else:
        return _load_alone(contents.path, variant, options)
    if variant.format == SAVED_MODEL:
        return _load_frozen(contents, variant, options, (signature_map, keys))
    known = {key: s for key, s in signatures_from_map(signature_map).items() if key != INIT_SIGNATURE}
    graph = _load_graph(contents.path, variant, options)

    def serve() -> Backend:
        names = names_for(variant, keys, bind(graph, known, variant.signatures))
        backend = GraphBackend(graph, signature_map, names, variant.name)
        return _with_rest(contents, backend, options, signature_map)

    return _or_close(graph, serve)


def _load_frozen(
    contents: Contents, variant: Variant, options: LoadOptions, asked: tuple[Any, Sequence[str] | None]
) -> Backend:
    from moxserve.serving.backends.frozen import FrozenBackend

    signature_map, keys = asked
    backend = FrozenBackend(contents.path, variant, options)

    def serve() -> Backend:
        backend.stand_in(signature_map, variant.signatures, keys)
        return _with_rest(contents, backend, options, signature_map)

    return _or_close(backend, serve)


def _with_rest(contents: Contents, backend: Backend, options: LoadOptions, signature_map: Any) -> Backend:
    """Put the SavedModel behind a variant for the signatures that the variant does not serve, where it may serve."""
    known = {key for key in signature_map.signature_def if key != INIT_SIGNATURE}
    if not contents.graph or SAVED_MODEL not in _formats(options) or set(backend.signatures) == known:
        return backend
    return VariantBackend(backend, signature_map, lambda: _load_saved_model(contents.path, options))


def _load_alone(path: str, variant: Variant, options: LoadOptions) -> Backend:
    """Load a variant that is the model itself: its own names are the aliases."""
    if variant.format == SAVED_MODEL:
        from moxserve.serving.backends.frozen import FrozenBackend

        return FrozenBackend(path, variant, options)
    graph = _load_graph(path, variant, options)

    def serve() -> Backend:
        from moxserve.serving.backends.tflite import TfliteGraph, tflite_backend

        if isinstance(graph, TfliteGraph):
            return tflite_backend(graph, variant.name)
        own = own_signature(graph.inputs, graph.outputs)
        signatures = {own.name: own}
        return GraphBackend(graph, signature_map_of(signatures), bind(graph, signatures, {}), variant.name)

    return _or_close(graph, serve)


def _or_close(graph: Graph | Backend, serve: Callable[[], Backend]) -> Backend:
    try:
        return serve()
    except BaseException:
        graph.close()
        raise


def _load_graph(path: str, variant: Variant, options: LoadOptions) -> Graph:
    file = os.path.join(path, variant.path)
    if variant.format == "onnx":
        from moxserve.serving.backends.onnx import OnnxGraph

        return OnnxGraph(file, options.intra_op_threads, options.inter_op_threads)
    if variant.format == "openvino":
        from moxserve.serving.backends.openvino import OpenVinoGraph

        return OpenVinoGraph(file, variant.precision, options.intra_op_threads)
    from moxserve.serving.backends.tflite import TfliteGraph

    return TfliteGraph(file, options.tflite, options.intra_op_threads)
