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
from moxserve.serving.grpc.streams import Stream

__all__ = ["SERVICES", "reflection_stream"]

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def reflection_stream(services: Iterable[str]) -> Stream:
    """Return the method of both services, `ServerReflectionInfo`; bytes, since the messages are those of one of them.

    Args:
        services: full names of all services that the server has. One that is not described by the descriptors here is
            not listed either.
    """
    names = tuple(services)

    async def answer(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        servicer = reflection.aio.ReflectionServicer(filter(_is_described, names), pool=_pool())
        async for reply in servicer.ServerReflectionInfo(_parsed(requests, context), context):
            yield reply.SerializeToString()

    return answer


async def _parsed(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
    async for data in requests:
        try:
            yield reflection_pb2.ServerReflectionRequest.FromString(data)
        except DecodeError as error:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the {len(data)} bytes of the request are no ServerReflectionRequest: {error}",
            )


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
