"""A variant that serves some signatures of a model, and the SavedModel beside it that serves the rest.

The SavedModel is loaded by the first request that needs it, or by a warmup record that does: a version whose variant
serves everything that is asked for never loads TensorFlow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.errors import FailedPrecondition, MoxserveError, ServingError
from moxserve.protocol.metadata import signatures_from_map
from moxserve.serving.backends.base import Backend
from moxserve.serving.backends.calls import CallSignature
from moxserve.types import INIT_SIGNATURE, Signature

__all__ = ["VariantBackend"]

logger = logging.getLogger(__name__)


class VariantBackend:
    """Both in one. See `Backend` for the interface.

    Args:
        main: the variant; its signatures are served by it.
        signature_map: SignatureDefMap of the SavedModel.
        load_rest: loads the SavedModel.

    Attributes:
        main: as given.
        served: signatures that the variant serves.
    """

    def __init__(self, main: Backend, signature_map: Any, load_rest: Callable[[], Backend]) -> None:
        self.platform = main.platform
        self.variant = main.variant
        self.signature_defs = signature_map
        known = signatures_from_map(signature_map)
        self.signatures: Mapping[str, Signature] = {key: s for key, s in known.items() if key != INIT_SIGNATURE}
        definitions = signature_map.signature_def
        self.calls: Mapping[str, CallSignature] = {
            key: main.calls.get(key) or CallSignature.from_def(s, definitions[key])
            for key, s in self.signatures.items()
        }
        self.served = tuple(main.signatures)
        self.main = main
        self._load_rest = load_rest
        self._rest: Backend | None = None
        self._lock = threading.Lock()

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Backend.run`."""
        backend = self.main if signature in self.main.signatures else self._other(signature)
        return backend.run(signature, inputs, outputs)

    def run_here(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Backend.run_here`."""
        backend = self.main if signature in self.main.signatures else self._other(signature)
        return backend.run_here(signature, inputs, outputs)

    def run_together(self, signatures: Sequence[str], array: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Run several signatures at once; see `Backend.run_together`."""
        other = next((key for key in signatures if key not in self.main.signatures), None)
        backend = self.main if other is None else self._other(other)
        return backend.run_together(signatures, array)

    def _other(self, signature: str) -> Backend:
        if signature not in self.signatures:
            raise FailedPrecondition(f'Serving signature key "{signature}" not found.')
        with self._lock:
            if self._rest is None:
                logger.info("signature %r is not served by %s: loading the SavedModel", signature, self.variant)
                try:
                    self._rest = self._load_rest()
                except ServingError:
                    raise
                except MoxserveError as error:
                    raise FailedPrecondition(f"signature {signature!r}: {error.message}") from error
            return self._rest

    def close(self) -> None:
        """Free both."""
        self.main.close()
        if self._rest is not None:
            self._rest.close()
