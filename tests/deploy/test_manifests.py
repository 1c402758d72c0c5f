"""`moxserve deploy`: what is written, against the schemas of those who read it."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import text_format

from moxserve.cli.deploy import deploy
from moxserve.errors import UsageError
from moxserve.protocol import messages

Documents = list[dict[str, Any]]
VERSIONS = ("1.30", "1.37")


@pytest.fixture
def made() -> Callable[..., Documents]:
    """Run `moxserve deploy ...` and read what it writes."""

    def run(*arguments: str) -> Documents:
        done = CliRunner().invoke(deploy, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return list(yaml.safe_load_all(done.stdout))

    return run


def kind(documents: Documents, wanted: str) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == wanted]
    return found


def container(documents: Documents) -> dict[str, Any]:
    (found,) = kind(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def check_kubernetes(documents: Documents) -> None:
    """Hold manifests against Kubernetes' own schemas: an old and a new version, no unknown fields."""
    validate = pytest.importorskip("kubernetes_validate").validate
    for version in VERSIONS:
        for document in documents:
            validate(document, version, strict=True)


KUBERNETES = [
    ["--model", "half=pvc://models/some/half"],
    ["--model", "half=pvc://models", "--model", "three=/srv/models/three", "--name", "both", "--namespace", "ml"],
    ["--model", "half=pvc://models", "--max-replicas", "5", "--replicas", "2", "--gpus", "1", "--cpu", "500m"],
    ["--model", "half=gs://bucket/half", "--engine", "tensorflow_model_server", "--", "--enable_batching"],
]


@pytest.mark.parametrize("arguments", KUBERNETES)
def test_manifests_of_kubernetes_fit_its_schemas(made, arguments) -> None:
    check_kubernetes(made("kubernetes", *arguments))


def test_the_schemas_refuse_what_is_wrong(made) -> None:
    pytest.importorskip("kubernetes_validate")
    documents = made("kubernetes", *KUBERNETES[0])
    container(documents)["port"] = []
    with pytest.raises(Exception, match="port"):
        check_kubernetes(documents)


def test_a_model_on_a_claim(made) -> None:
    documents = made("kubernetes", "--model", "half=pvc://models/some/half", "--", "--enable_batching")
    server = container(documents)
    assert server["command"] == ["moxserve", "serve"]
    assert {"--port=8500", "--rest_api_port=8501", "--model_name=half", "--model_base_path=/models/half",
            "--enable_batching=true"} <= set(server["args"])  # fmt: skip
    (mount,) = [m for m in server["volumeMounts"] if m["mountPath"] == "/models/half"]
    assert (mount["subPath"], mount["readOnly"]) == ("some/half", True)
    pod = kind(documents, "Deployment")["spec"]["template"]["spec"]
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "configMap" not in v}
    assert claims == {mount["name"]: "models"}
    ports = {p["name"]: p["containerPort"] for p in server["ports"]}
    assert {p["targetPort"]: p["port"] for p in kind(documents, "Service")["spec"]["ports"]} == ports
    labels = kind(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert kind(documents, "Service")["spec"]["selector"].items() <= labels.items()


def test_the_container_is_told_what_serve_understands(made, tmp_path) -> None:
    """The command line of each container is one that `moxserve serve` accepts, to the last flag."""
    from moxserve.cli.serve import serve
    from moxserve.serving.options import from_flags

    documents = made("kubernetes", *KUBERNETES[1])
    config = kind(documents, "ConfigMap")["data"]
    for name, text in config.items():
        (tmp_path / name).write_text(text)
    arguments = [a.replace("/etc/moxserve", str(tmp_path)) for a in container(documents)["args"]]
    context = serve.make_context("serve", arguments)
    assert context.args == []
    options = from_flags(context.params)
    models = {model.name: model.base_path for model in options.models() or ()}
    assert models == {"half": "/models/half", "three": "/models/three"}
    assert options.rest.metrics_path == "/monitoring/prometheus/metrics"
    annotations = kind(documents, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == options.rest.metrics_path
    assert options.grpc.health


def test_an_autoscaler_owns_the_number_of_replicas(made) -> None:
    documents = made("kubernetes", "--model", "half=pvc://models", "--replicas", "2", "--max-replicas", "5")
    scaler = kind(documents, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 5)
    assert scaler["scaleTargetRef"]["name"] == kind(documents, "Deployment")["metadata"]["name"]
    assert "replicas" not in kind(documents, "Deployment")["spec"]
    assert made("kubernetes", "--model", "half=pvc://models", "--replicas", "3")[1]["spec"]["replicas"] == 3


def test_the_cpp_server_gets_the_same_flags(made) -> None:
    arguments = ["kubernetes", "--model", "half=gs://bucket/half", "--engine", "tensorflow_model_server", "--"]
    server = container(made(*arguments, "--enable_batching", "--new_in_cpp=1", "--max_num_load_retries", "0"))
    assert server["image"].startswith("tensorflow/serving:")
    assert server["command"] == ["tensorflow_model_server"]
    assert {"--max_num_load_retries=0", "--enable_batching=true", "--new_in_cpp=1"} <= set(server["args"])
    assert "--model_base_path=gs://bucket/half" in server["args"]
    assert not any(m["mountPath"].startswith("/models") for m in server["volumeMounts"])


def test_files_that_flags_name_go_along(made, tmp_path) -> None:
    parameters = tmp_path / "batching.txt"
    parameters.write_text("max_batch_size { value: 8 }\n")
    flags = ["--enable_batching", f"--batching_parameters_file={parameters}"]
    documents = made("kubernetes", "--model", "half=pvc://models", "--", *flags)
    (argument,) = [a for a in container(documents)["args"] if a.startswith("--batching_parameters_file=")]
    folder, _, name = argument.partition("=")[2].rpartition("/")
    assert kind(documents, "ConfigMap")["data"][name] == parameters.read_text()
    assert folder in [m["mountPath"] for m in container(documents)["volumeMounts"]]


def test_a_configuration_file_and_its_mounts(made, tmp_path) -> None:
    config = tmp_path / "models.txt"
    config.write_text(
        'model_config_list { config { name: "a" base_path: "/models/a" model_platform: "tensorflow" '
        "model_version_policy { specific { versions: 3 } } } }\n"
    )
    arguments = ["kubernetes", "--name", "a", "--model-config-file", str(config)]
    documents = made(*arguments, "--mount", "pvc://models=/models")
    check_kubernetes(documents)
    assert kind(documents, "ConfigMap")["data"]["models.config"] == config.read_text()
    before = kind(documents, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    config.write_text(config.read_text().replace("versions: 3", "versions: 4"))
    after = kind(made(*arguments, "--mount", "pvc://models=/models"), "Deployment")
    assert after["spec"]["template"]["metadata"]["annotations"] != before, "new files must start new pods"
    with pytest.raises(UsageError, match="the base path of a, /models/a, is on no mount"):
        made(*arguments, "--mount", "pvc://models=/model")


# KServe


@pytest.fixture(scope="module")
def kserve_models() -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Class -> (types, JSON names) of KServe's own models, read from its package without importing it."""
    folder = os.environ.get("MOXSERVE_KSERVE")
    if not folder:
        pytest.skip("no kserve package: set MOXSERVE_KSERVE to a folder with one (pip install --no-deps --target ...)")
    found = {}
    for path in Path(folder, "kserve", "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                values = {
                    target.id: ast.literal_eval(part.value)
                    for part in node.body
                    if isinstance(part, ast.Assign)
                    for target in part.targets
                    if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map")
                }
                if len(values) == 2:
                    found[node.name] = (values["openapi_types"], values["attribute_map"])
    assert "V1beta1InferenceService" in found
    return found


PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def check_kserve(models: dict[str, Any], value: Any, wanted: str, place: str) -> None:
    """Hold a value against KServe's models; what those leave to Kubernetes is looked at elsewhere."""
    if wanted.startswith("list["):
        for i, item in enumerate(value):
            check_kserve(models, item, wanted[5:-1], f"{place}[{i}]")
    elif wanted in PLAIN:
        assert isinstance(value, PLAIN[wanted]), f"{place}: {value!r} is no {wanted}"
    elif wanted in models:
        types, names = models[wanted]
        known = {names[attribute]: kind for attribute, kind in types.items()}
        for key, item in value.items():
            assert key in known, f"{place}: {wanted} has no field {key}"
            check_kserve(models, item, known[key], f"{place}.{key}")


KSERVE = [
    ["--model", "half=pvc://models/half"],
    ["--model", "Half.Plus=s3://bucket/half", "--name", "half", "--protocol", "grpc", "--max-replicas", "3",
     "--", "--enable_batching"],
    ["--model", "half=gs://bucket/half", "--engine", "tensorflow_model_server", "--", "--enable_batching"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", KSERVE)
def test_an_inference_service_fits_kserves_models(made, kserve_models, arguments) -> None:
    (service,) = made("kserve", *arguments)
    check_kserve(kserve_models, service, "V1beta1InferenceService", "InferenceService")
    with pytest.raises(AssertionError, match="has no field"):
        check_kserve(kserve_models, {"spec": {"predictr": {}}}, "V1beta1InferenceService", "InferenceService")


@pytest.mark.parametrize("arguments", KSERVE)
def test_the_container_of_an_inference_service_fits_kubernetes(made, arguments) -> None:
    (service,) = made("kserve", *arguments)
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"]["predictor"]
    pod = {key: predictor[key] for key in ("containers", "terminationGracePeriodSeconds") if key in predictor}
    pod.setdefault(
        "containers", [{"name": "c", "image": "i", "resources": predictor.get("model", {}).get("resources")}]
    )
    check_kubernetes([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}])


def test_kserve_copies_the_model_to_where_the_server_looks(made) -> None:
    (service,) = made("kserve", *KSERVE[1])
    (server,) = service["spec"]["predictor"]["containers"]
    assert server["name"] == "kserve-container"
    assert server["env"] == [{"name": "STORAGE_URI", "value": "s3://bucket/half"}]
    assert {"--model_name=Half.Plus", "--model_base_path=/mnt/models", "--enable_batching=true"} <= set(server["args"])
    assert [(p["name"], p["containerPort"]) for p in server["ports"]] == [("h2c", 8500)]
    (service,) = made("kserve", *KSERVE[2])
    model = service["spec"]["predictor"]["model"]
    assert (model["modelFormat"], model["storageUri"]) == ({"name": "tensorflow"}, "gs://bucket/half")
    assert model["args"] == ["--enable_batching=true"]


# docker-compose


COMPOSE = [
    ["--model", "half=models/half"],
    ["--model", "half=models/half", "--model", "three=/srv/three", "--name", "both", "--replicas", "2", "--gpus", "1"],
    [
        "--model",
        "half=models/half",
        "--engine",
        "tensorflow_model_server",
        "--memory",
        "500M",
        "--",
        "--enable_batching",
    ],
]


@pytest.mark.parametrize("arguments", COMPOSE)
def test_a_compose_file_is_one(made, arguments) -> None:
    parser = pytest.importorskip("compose_spec").PyCompose
    (document,) = made("docker-compose", *arguments)
    assert parser.from_yaml(yaml.safe_dump(document)).service_names() == [document["name"]]
    with pytest.raises(ValueError, match=r"(?s)."):
        parser.from_yaml(yaml.safe_dump({**document, "services": {"x": {"imag": 3}}}))


@pytest.mark.parametrize("arguments", COMPOSE)
def test_a_compose_file_fits_the_schema_of_docker_compose(made, arguments) -> None:
    schema = os.environ.get("MOXSERVE_COMPOSE_SCHEMA")
    if not schema:
        pytest.skip("no schema: set MOXSERVE_COMPOSE_SCHEMA to the compose_spec.json of a docker-compose package")
    validator = pytest.importorskip("jsonschema").Draft7Validator(json.loads(Path(schema).read_text()))
    (document,) = made("docker-compose", *arguments)
    # That schema is older than the name at the top and than configurations inside the file.
    document = {**document, "configs": {name: {"file": "x"} for name in document["configs"]}}
    del document["name"]
    assert [error.message for error in validator.iter_errors(document)] == []
    assert list(validator.iter_errors({**document, "services": {"x": {"imag": 3}}}))


def test_a_compose_file_holds_its_configuration(made, tmp_path) -> None:
    (document,) = made("docker-compose", *COMPOSE[1])
    (service,) = document["services"].values()
    assert service["entrypoint"] == ["moxserve", "serve"]
    binds = {v["target"]: v["source"] for v in service["volumes"]}
    assert binds == {"/models/half": str(Path("models/half").absolute()), "/models/three": "/srv/three"}
    assert service["ports"] == ["8500", "8501"], "several containers cannot have one port of the machine"
    at = {c["target"]: document["configs"][c["source"]]["content"] for c in service["configs"]}
    message = text_format.Parse(at["/etc/moxserve/models.config"], messages.ModelServerConfig())
    assert [c.base_path for c in message.model_config_list.config] == ["/models/half", "/models/three"]
    assert made("docker-compose", *COMPOSE[0])[0]["services"]["half"]["ports"] == ["8500:8500", "8501:8501"]
    assert made("docker-compose", *COMPOSE[2])[0]["services"]["half"]["deploy"]["resources"]["limits"] == {
        "memory": "500000000b"
    }


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["kubernetes", "--model", "Half_Plus=pvc://m"], "'Half_Plus' is no name for Kubernetes", "--name=half-plus"),
        (["kubernetes", "--model", "2x=pvc://m"], "'2x' is no name for Kubernetes", "--name=m-2x"),
        (["kubernetes", "--model", "a=pvc://My_Claim"], "'My_Claim' is no name for Kubernetes", "my-claim"),
        (["kubernetes", "--model", "a=pvc://m", "--namespace", "A"], "--namespace='A' is no name", "--namespace=a"),
        (["kubernetes", "--model", "a=pvc://m", "--model", "b=pvc://m"], "--name is missing", "model-server"),
        (["kubernetes"], "there is no model", "--model NAME=PLACE"),
        (["kubernetes", "--model", "a=models/a"], "a directory of a node has an absolute path", "pvc://claim/path"),
        (["kubernetes", "--model", "a=gs://b/a"], "moxserve reads directories only", "kserve"),
        (["kubernetes", "--model", "a"], "--model a: expected NAME=PLACE", None),
        (["kubernetes", "--model", "a/../b=pvc://m", "--name", "a"], "expected a name of letters", None),
        (["kubernetes", "--name", "a"], "expected either models or a model configuration file", "--model NAME=PLACE"),
        (["kubernetes", "--model", "a=pvc://m", "--engine", "triton"], "--engine=triton: expected moxserve or", None),
        (["kubernetes", "--model", "a=pvc://m", "--memory", "lots"], "--memory=lots: expected a quantity", None),
        (["kubernetes", "--model", "a=pvc://m", "--replicas", "3", "--max-replicas", "2"], "--max-replicas=2", None),
        (["kubernetes", "--model", "a=pvc://m", "--", "--port=1"], "--port is not for the flags", "gRPC is on 8500"),
        (["kubernetes", "--model", "a=pvc://m", "--", "--enable_batch"], "know --enable_batch", "--enable_batching?"),
        (["kserve", "--model", "a=/srv/a"], "KServe cannot reach a directory of this machine", "pvc://"),
        (["kserve", "--model", "a=pvc://m", "--model", "b=pvc://m", "--name", "x"], "serves one model", "kubernetes"),
        (["docker-compose", "--model", "a=pvc://m"], "docker-compose has no claims", "a directory of this machine"),
        (["docker-compose", "--model", "a=/a", "--max-replicas", "2"], "does not scale by load", "kubernetes"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments, message, hint) -> None:
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(deploy, arguments, catch_exceptions=False)
    assert message in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.slow
def test_a_file_is_written_whole_or_not_at_all(run_moxserve, tmp_path) -> None:
    out = tmp_path / "half.yaml"
    done = run_moxserve("deploy", "kubernetes", "--model", "half=pvc://models", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    before = out.read_text()
    assert len(list(yaml.safe_load_all(before))) == 3
    done = run_moxserve("deploy", "kubernetes", "--model", "half=gs://models", "--out", out)
    assert done.returncode == 2
    assert "moxserve reads directories only" in done.stderr
    assert out.read_text() == before
    assert os.listdir(tmp_path) == ["half.yaml"]
