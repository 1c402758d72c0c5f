"""Our messages are TensorFlow Serving's, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moxserve.protocol import messages
from moxserve.protocol.extract import DESCRIPTOR_FILE, extract


def test_the_descriptors_are_those_of_the_installed_wheel() -> None:
    assert Path(DESCRIPTOR_FILE).read_bytes() == extract(), "run python -m moxserve.protocol.extract"


def test_messages_have_their_original_names() -> None:
    assert messages.PredictRequest.DESCRIPTOR.full_name == "tensorflow.serving.PredictRequest"
    assert messages.TensorProto.DESCRIPTOR.full_name == "tensorflow.TensorProto"
    assert messages.by_full_name("tensorflow.Example") is messages.Example


def test_bytes_cross_to_the_official_classes_and_back() -> None:
    from tensorflow_serving.apis import predict_pb2

    ours = messages.PredictRequest()
    ours.model_spec.name = "digits"
    ours.model_spec.version.value = 3
    ours.inputs["x"].dtype = 1
    ours.inputs["x"].float_val.extend([1, 2])
    ours.output_filter.append("y")
    theirs = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert theirs.model_spec.version.value == 3
    assert list(theirs.inputs["x"].float_val) == [1, 2]
    assert messages.PredictRequest.FromString(theirs.SerializeToString()) == ours
    assert type(theirs) is not type(ours)


def test_an_unknown_message_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no wire message is named 'PredictRequst'"):
        _ = messages.PredictRequst
    with pytest.raises(KeyError):
        messages.by_full_name("tensorflow.serving.Nothing")


def test_enums_are_named() -> None:
    name = "tensorflow.serving.ModelVersionStatus.State"
    assert messages.enum_value(name, "AVAILABLE") == 30
    assert messages.enum_name(name, 30) == "AVAILABLE"
    assert messages.enum_name(name, 99) == "99"


def test_text_and_json_forms() -> None:
    config = messages.parse_text(
        'model_config_list { config { name: "a" base_path: "/m" } }', messages.ModelServerConfig()
    )
    assert config.model_config_list.config[0].base_path == "/m"
    spec = messages.ModelSpec(name="a", signature_name="s")
    assert messages.message_to_json_dict(spec, preserving_proto_field_name=True) == {"name": "a", "signature_name": "s"}


THREADS = """
import threading
from moxserve.protocol import messages
barrier = threading.Barrier(16)
found, errors = [], []
def work(i):
    barrier.wait()
    try:
        request = messages.PredictRequest()
        tensor = messages.TensorProto(dtype=1)
        request.inputs["x"].CopyFrom(tensor)
        found.append(id(messages.pool()))
    except Exception as error:
        errors.append(repr(error))
threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(set(found)), len(found), errors[:1])
"""


def test_threads_that_come_first_at_once_share_one_pool() -> None:
    def first_use(_: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", THREADS], capture_output=True, text=True, check=True
        ).stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(first_use, range(4))) == {"1 16 []"}


def test_tensorflow_is_not_imported() -> None:
    code = (
        "import sys; from moxserve.protocol import messages, tensors, examples, tfrecord; messages.PredictRequest(); "
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in ('tensorflow', 'tensorflow_serving')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
