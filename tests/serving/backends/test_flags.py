"""The flags that say how a version is loaded, from their text to what the runtime is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import ConfigError, UsageError
from moxserve.protocol import textproto
from moxserve.serving import backends
from moxserve.serving.backends import LoadOptions, TfliteOptions
from moxserve.serving.flags import FLAGS
from moxserve.serving.main import Server
from moxserve.serving.options import ServerOptions, from_flags
from moxserve.serving.platform_config import read_platform_config
from moxserve.types import ModelRef


def options(**flags: Any) -> ServerOptions:
    values: dict[str, Any] = {flag.name: () if flag.repeats else flag.default for flag in FLAGS}
    return from_flags({**values, "model_base_path": "/m", **flags})


def test_backends() -> None:
    assert options().load == LoadOptions()
    given = options(backend=("tensorflow", "a=onnxruntime", "b=openvino", "c=auto"))
    assert given.load.backend == "tensorflow"
    assert given.backends == {"a": "onnx", "b": "openvino", "c": "auto"}
    assert given.load_options("a", "tensorflow") == LoadOptions(backend="onnx", platform="tensorflow")
    assert given.load_options("z", "tflite") == LoadOptions(backend="tensorflow", platform="tflite")
    with pytest.raises(UsageError, match=r"--backend=onx: there is no backend 'onx'; did you mean 'onnx'\?"):
        options(backend=("onx",))
    with pytest.raises(UsageError, match="expected BACKEND or MODEL=BACKEND"):
        options(backend=("=onnx",))


def test_tflite_and_precision(caplog: pytest.LogCaptureFixture) -> None:
    given = options(prefer_tflite_model=True, num_tflite_pools=3, num_tflite_interpreters_per_pool=2)
    assert given.load == LoadOptions(prefer_tflite=True, tflite=TfliteOptions(3, 2))
    assert options(freeze_on_load=True, mixed_precision="bfloat16").load.mixed_precision == "bfloat16"
    assert options(mixed_precision="float8").load.mixed_precision == ""
    assert "--mixed_precision=float8 is ignored" in caplog.text
    with pytest.raises(UsageError, match="--num_tflite_pools=-1: expected 0 or more"):
        options(num_tflite_pools=-1)


def test_a_session_configuration(testdata: Path, tmp_path: Path) -> None:
    file = tmp_path / "session.txt"
    file.write_text(
        "intra_op_parallelism_threads: 7 operation_timeout_in_ms: 9000 gpu_options { allow_growth: true } "
        "graph_options { rewrite_options { constant_folding: OFF } }"
    )
    load = options(tensorflow_session_config_file=str(file), tensorflow_inter_op_parallelism=2).load
    backend: Any = backends.load(testdata / "saved_model_half_plus_two_cpu" / "00000123", load)
    config = backend._session._config
    # The flags overwrite, also with 0 when they are not given.
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (0, 2)
    assert (config.operation_timeout_in_ms, config.gpu_options.allow_growth) == (9000, True)
    assert config.graph_options.rewrite_options.constant_folding == 2
    assert backend.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[3.0]]
    file.write_text("intra_op_parallelism: 7")
    with pytest.raises(ConfigError, match=r"Error parsing text-format tensorflow\.ConfigProto: 1:1"):
        options(tensorflow_session_config_file=str(file))
    with pytest.raises(UsageError, match="cannot read the session configuration"):
        options(tensorflow_session_config_file=str(tmp_path / "none"))


def test_mixed_precision_reaches_the_optimizer(testdata: Path) -> None:
    path = testdata / "saved_model_half_plus_two_cpu" / "00000123"
    backend: Any = backends.load(path, LoadOptions(mixed_precision="bfloat16"))
    assert backend._session._config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 == 1
    assert backend.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[3.0]]


ADAPTER = "type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig"


def platform_file(tmp_path: Path, legacy: str, key: str = "tensorflow", adapter: str = ADAPTER) -> str:
    path = tmp_path / "platform.txt"
    path.write_text(
        f'platform_configs {{ key: "{key}" value {{ source_adapter_config {{ [{adapter}] {{ '
        f"legacy_config {{ {legacy} }} }} }} }} }}"
    )
    return str(path)


def test_a_platform_configuration_replaces_flags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = platform_file(
        tmp_path,
        "session_config { intra_op_parallelism_threads: 3 use_per_session_threads: true } "
        'saved_model_tags: "serve" saved_model_tags: "gpu" prefer_tflite_model: true num_tflite_pools: 2 '
        "model_warmup_options { num_request_iterations { value: 4 } num_model_warmup_threads { value: 2 } } "
        "enable_model_warmup: true enable_session_metadata: true",
    )
    given = options(
        platform_config_file=path, tensorflow_intra_op_parallelism=8, saved_model_tags="x", num_tflite_pools=9,
        enable_model_warmup=False, mixed_precision="bfloat16",
    )  # fmt: skip
    assert given.load.tags == ("serve", "gpu")
    assert (given.load.intra_op_threads, given.load.mixed_precision) == (3, "")
    assert b"\x10\x03" in given.load.session_config
    assert (given.load.prefer_tflite, given.load.tflite) == (True, TfliteOptions(2, 1))
    assert (given.warmup, given.warmup_iterations) == (True, 4)
    assert "enable_session_metadata means nothing to this server" in caplog.text
    assert "records are replayed one after the other here" in caplog.text
    # What it does not say is as in an empty message, not as the flags say.
    empty = options(platform_config_file=platform_file(tmp_path, ""), saved_model_tags="x", prefer_tflite_model=True)
    assert (empty.load.tags, empty.load.prefer_tflite, empty.warmup) == (("serve",), False, False)


def test_batching_in_a_platform_configuration(tmp_path: Path) -> None:
    path = platform_file(tmp_path, "batching_parameters { max_batch_size { value: 5 } allowed_batch_sizes: 5 }")
    stored = read_platform_config(path).batching
    assert stored is not None
    parameters = textproto.batching_parameters()
    parameters.ParseFromString(stored)
    assert (parameters.max_batch_size.value, list(parameters.allowed_batch_sizes)) == (5, [5])
    assert read_platform_config(platform_file(tmp_path, "")).batching is None


@pytest.mark.parametrize(
    ("legacy", "reason"),
    [
        ('session_target: "grpc://other:1"', "session_target cannot be honoured: the model runs in this process"),
        ('experimental_fixed_input_tensors { name: "x" }', "experimental_fixed_input_tensors cannot be honoured"),
        ("model_warmup_options { enable_all_batch_sizes_warmup: true }", "enable_all_batch_sizes_warmup cannot be"),
        ("session_config { rpc_options {} }", "session_config asks for a cluster"),
    ],
)
def test_what_cannot_be_honoured(legacy: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        options(platform_config_file=platform_file(tmp_path, legacy))


def test_platform_configurations_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has the key 'torch'; expected 'tensorflow' only"):
        options(platform_config_file=platform_file(tmp_path, "", key="torch"))
    with pytest.raises(ConfigError, match='has no field named "nope"'):
        options(platform_config_file=platform_file(tmp_path, "nope: 1"))
    (tmp_path / "p.txt").write_text("platform_configs { }")
    with pytest.raises(UsageError, match=r"has the key ''"):
        options(platform_config_file=str(tmp_path / "p.txt"))
    (tmp_path / "p.txt").write_text('platform_configs { key: "tensorflow" value {} }')
    with pytest.raises(UsageError, match="source_adapter_config is of type 'none'"):
        options(platform_config_file=str(tmp_path / "p.txt"))
    inner = f'type_url: "{ADAPTER}" value: ""'
    (tmp_path / "p.txt").write_text(
        f'platform_configs {{ key: "tensorflow" value {{ source_adapter_config {{ {inner} }} }} }}'
    )
    with pytest.raises(UsageError, match="given as type_url and bytes; expected its fields in text"):
        options(platform_config_file=str(tmp_path / "p.txt"))


def test_freezing_behind_a_server(testdata: Path) -> None:
    load = options(freeze_on_load=True).load
    server = Server(ServerOptions(model_base_path=str(testdata / "saved_model_half_plus_two_cpu"), load=load))
    with server, server._manager.borrow(ModelRef("default")) as servable:
        assert servable.backend.frozen  # type: ignore[attr-defined]
