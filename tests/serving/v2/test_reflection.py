"""What tools learn from the server itself: services, messages, and calls made of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory

from moxserve.serving.grpc.options import GrpcOptions

V1, ALPHA = "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"


@pytest.fixture
def channel(server: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


@pytest.fixture
def ask(channel: grpc.Channel) -> Callable[..., Any]:
    """One request of the reflection protocol, of either form."""
    from grpc_reflection.v1alpha import reflection_pb2

    def call(service: str, **what: Any) -> Any:
        method = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        return next(method(iter([reflection_pb2.ServerReflectionRequest(**what)]), timeout=60))

    return call


def test_the_services(channel: grpc.Channel) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    assert set(ProtoReflectionDescriptorDatabase(channel).get_services()) >= {
        "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "inference.GRPCInferenceService",
        "grpc.health.v1.Health", V1, ALPHA,
    }  # fmt: skip


def test_a_call_made_of_reflection_alone(channel: grpc.Channel) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service = pool.FindServiceByName("tensorflow.serving.PredictionService")
    method = service.methods_by_name["Predict"]
    request = message_factory.GetMessageClass(method.input_type)()
    request.model_spec.name = "half"
    tensor = request.inputs["x"]
    tensor.dtype = pool.FindEnumTypeByName("tensorflow.DataType").values_by_name["DT_FLOAT"].number
    tensor.tensor_shape.dim.add().size = 2
    tensor.float_val.extend([1.0, 2.0])
    response = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_unary(f"/{service.full_name}/{method.name}", response_deserializer=response.FromString)
    assert list(call(request.SerializeToString(), timeout=60).outputs["y"].float_val) == [2.5, 3.0]


@pytest.mark.parametrize("service", [V1, ALPHA])
def test_both_forms(ask: Callable[..., Any], service: str) -> None:
    from google.protobuf import descriptor_pb2

    names = [entry.name for entry in ask(service, list_services="").list_services_response.service]
    assert names == sorted(names)
    for name in names:
        files = ask(service, file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
        first = descriptor_pb2.FileDescriptorProto.FromString(files[0])
        assert name in [f"{first.package}.{found.name}" for found in first.service]
        assert ask(service, file_by_filename=first.name).file_descriptor_response.file_descriptor_proto == files


def test_what_is_not_known(ask: Callable[..., Any]) -> None:
    assert ask(V1, file_containing_symbol="no.Such").error_response.error_code == 5
    assert ask(V1, file_by_filename="no.proto").error_response.error_code == 5
    assert ask(V1).error_response.error_code == 3


def test_bytes_that_are_no_request(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(channel.stream_stream(f"/{V1}/ServerReflectionInfo")(iter([b"\xff\xff"]), timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "are no ServerReflectionRequest" in caught.value.details()


def test_it_can_be_turned_off(serve, testdata) -> None:
    server = serve(testdata / "saved_model_half_plus_two_cpu", grpc=GrpcOptions(reflection=False))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for service in (V1, ALPHA):
            with pytest.raises(grpc.RpcError) as caught:
                next(channel.stream_stream(f"/{service}/ServerReflectionInfo")(iter([b""]), timeout=60))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
