"""What may be loaded when: the client and the command line stay light."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = [
    "tensorflow",
    "onnxruntime",
    "openvino",
    "tf2onnx",
    "locust",
    "pandas",
    "sklearn",
    "gevent",
    "keras",
    "tf_keras",
]

PROBE = """
import json, sys
{code}
print(json.dumps([m for m in {heavy} if m in sys.modules]))
"""


def loaded_by(code: str) -> list[str]:
    probe = PROBE.format(code=code, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout.splitlines()[-1])


CLI = """
from moxserve.cli.main import cli
from click.testing import CliRunner
result = CliRunner().invoke(cli, {args}, standalone_mode=True)
if result.exit_code != 0:
    raise SystemExit(result.output)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import moxserve",
        "import moxserve.client; moxserve.client.Client",
        "import moxserve.config",
        "import moxserve.file",
        "import moxserve.pipeline",
        "import moxserve.export.versions, moxserve.export.job, moxserve.export.manifest",
        "import moxserve.probe, moxserve.export.report, moxserve.export.requirements, moxserve.export.figures",
        "import moxserve.protocol.rest, moxserve.protocol.tensors, moxserve.protocol.messages",
        "import moxserve_plugins",
    ],
)
def test_import_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [["--help"]]
    + [[c, "--help"] for c in ("data", "export", "inspect", "loadtest", "pipeline", "plugins", "predict", "serve")]
    + [["quickstart", "--help"]]
    + [["plugins", "list"], ["pipeline", "schema"], ["pipeline", "validate", "pipelines/digits.yaml", "--no-files"]],
)
def test_command_loads_nothing_heavy(args: list[str], repo_root, monkeypatch) -> None:
    monkeypatch.chdir(repo_root)
    assert loaded_by(CLI.format(args=args)) == []


def test_top_level_names_resolve() -> None:
    import moxserve

    for name in moxserve.__all__:
        assert getattr(moxserve, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        moxserve.Clinet  # noqa: B018


def test_help_loads_no_command_module() -> None:
    code = CLI.format(args=["--help"]) + "\nprint([m for m in sys.modules if m.startswith('moxserve.cli.')])"
    probe = PROBE.format(code=code, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-2] == "['moxserve.cli.main']"
