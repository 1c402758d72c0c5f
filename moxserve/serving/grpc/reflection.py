"""Server reflection: tools such as grpcurl ask the server itself which services and messages it knows.

Both forms are offered, `grpc.reflection.v1` and `grpc.reflection.v1alpha`, whose messages are the same on the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from moxserve.protocol import messages

__all__ = ["SERVICES", "Reflection"]

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class Reflection(grpc.GenericRpcHandler):
    """The handler of the reflection services on a grpc.aio server.

    Args:
        services: full names of the services that the server has besides these. One that is not described by the
            descriptors here is not listed either.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = (*services, *SERVICES)
        self._paths = frozenset(f"/{name}/ServerReflectionInfo" for name in SERVICES)
        # Bytes in, bytes out: the generated code knows only one of the two forms.
        self._handler = grpc.stream_stream_rpc_method_handler(self._answer)

    def service(self, details: Any) -> Any:
        """Return the handler of a call; None for the calls of other services."""
        return self._handler if details.method in self._paths else None

    async def _answer(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async def read() -> AsyncIterator[Any]:
            async for data in requests:
                try:
                    yield reflection_pb2.ServerReflectionRequest.FromString(data)
                except DecodeError as error:
                    await context.abort(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"the {len(data)} bytes of the request are no ServerReflectionRequest: {error}",
                    )

        servicer = reflection.aio.ReflectionServicer(filter(_is_described, self._services), pool=_pool())
        async for answer in servicer.ServerReflectionInfo(read(), context):
            yield answer.SerializeToString()


@cache
def _pool() -> Any:
    """Return a pool of all that is served here, gRPC's own services included. Made for the first who asks."""
    pool = descriptor_pool.DescriptorPool()
    own = [_proto(health_pb2), _proto(reflection_pb2)]
    # The package has no descriptors of the newer form, which differs in its name alone.
    newer = text_format.MessageToString(own[1]).replace("v1alpha", "v1")
    for file in (*messages.descriptor_files(), *own, text_format.Parse(newer, descriptor_pb2.FileDescriptorProto())):
        pool.Add(file)
    return pool


def _is_described(service: str) -> bool:
    try:
        _pool().FindServiceByName(service)
    except KeyError:
        return False
    return True


def _proto(module: Any) -> Any:
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file
