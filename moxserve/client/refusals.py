"""How calls fail, in the same words over every transport."""

from __future__ import annotations

from moxserve.errors import RequestError, ServerUnreachableError

__all__ = ["PORTS", "nobody_answers", "overdue", "refused", "unavailable"]

MESSAGE_CHARS = 1000
PORTS = "TensorFlow Serving: gRPC on 8500, REST on 8501"
_HINTS = {
    "NOT_FOUND": "check the model's name, version or label",
    "RESOURCE_EXHAUSTED": "the server has run out of a resource: send smaller batches or fewer requests at once",
    "UNIMPLEMENTED": "the server answers but offers no such method, or not for this dtype",
}


def refused(target: str, status: str, message: str, hint: str | None = None) -> RequestError:
    """Make the error of a server that answered with a status other than UNAVAILABLE.

    Args:
        target: who answered.
        status: gRPC status name.
        message: the server's words.
        hint: what to do; None takes the usual one of the status.
    """
    too_large = status == "RESOURCE_EXHAUSTED" and "larger than max" in message
    if hint is None and too_large:
        hint = (
            "the message is larger than the server takes (this client sets no limit): "
            "raise the server's grpc.max_receive_message_length, or send smaller batches"
        )
    text = f"{target} answered {status}: {_printable(message)}"
    return RequestError(text, status=status, target=target, hint=hint or _HINTS.get(status))


def _printable(message: str) -> str:
    """Servers quote their inputs: keep binary data out of terminals and logs, and long tensors short."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in message)
    return text if len(text) <= MESSAGE_CHARS else f"{text[:MESSAGE_CHARS]}... ({len(text):,} characters)"


def overdue(target: str, timeout_s: float | None) -> RequestError:
    """Make the error of an answer that did not come in time."""
    limit = "the deadline" if timeout_s is None else f"{timeout_s:.3g} s"
    return RequestError(
        f"no answer from {target} within {limit}",
        status="DEADLINE_EXCEEDED",
        target=target,
        hint="allow more time (timeout_s, --timeout), send smaller batches, or see whether the server is busy",
    )


def unavailable(target: str, message: str) -> ServerUnreachableError:
    """Make the error of a server that answered UNAVAILABLE."""
    return ServerUnreachableError(
        f"{target} answered UNAVAILABLE: {message}",
        hint="the server is overloaded, starting or shutting down: try again, or send fewer requests at once",
    )


def nobody_answers(target: str, reason: str, kind: str) -> ServerUnreachableError:
    """Make the error of an address where nobody answers.

    Args:
        target: the address.
        reason: such as `Connection refused`.
        kind: `gRPC` or `REST`.
    """
    return ServerUnreachableError(
        f"nobody answers at {target}: {reason}",
        hint=f"is the server running, and is this its {kind} address? ({PORTS})",
    )
