"""Finding plugins: entry points, the shipped ones, folders; doubles refused; broken ones do not hinder others."""

# ruff: noqa: E501 - messages are asserted to the letter

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from moxserve.errors import PluginError
from moxserve.registry import Plugin, Registry, check_target, discover, load_target


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution, as pip would leave it, whose entry points a test may write."""
    site = tmp_path / "site"
    info = site / "acme_plugins-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugins\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[moxserve.plugins]\nmodel.acme = acme_pkg:Acme\nmodel.broken = acme_broken:X\nmodel.gone = acme_gone:X\n"
    )
    (site / "acme_pkg.py").write_text(
        "from moxserve.pipeline.slots import ModelPlugin\n"
        "class Acme(ModelPlugin):\n    'Acme net.'\n    def build(self, data): return None\n"
    )
    (site / "acme_broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    return info


def test_entry_points_are_found_and_loaded(distribution: Path):
    registry = discover([])
    assert registry.find("model", "acme").source == "acme-plugins 1.2"
    assert registry.load("model", "acme").__name__ == "Acme"


def test_broken_plugins_do_not_hinder_others(distribution: Path):
    registry = discover([])
    with pytest.raises(PluginError) as caught:
        registry.load("model", "broken")
    assert str(caught.value) == (
        "model plugin 'broken' of acme-plugins 1.2 does not load: ModuleNotFoundError: No module named 'no_such_dependency'"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(PluginError, match="does not load: ModuleNotFoundError: No module named 'acme_gone'"):
        registry.load("model", "gone")
    assert registry.load("model", "lenet").__name__ == "LeNet"


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ("justaname", "entry point 'justaname': expected a name of the form slot.name"),
        ("modell.x", "'modell' is no slot; did you mean 'model'?"),
    ],
)
def test_wrong_entry_names_are_listed_with_their_error(distribution: Path, entry: str, error: str):
    (distribution / "entry_points.txt").write_text(f"[moxserve.plugins]\n{entry} = acme_pkg:Acme\n")
    broken = [p for p in discover([]) if p.error]
    assert [(p.source, p.error) for p in broken] == [("acme-plugins 1.2", error)]


def test_a_name_from_two_sources_is_refused_and_both_are_named(distribution: Path):
    (distribution / "entry_points.txt").write_text("[moxserve.plugins]\nmodel.lenet = acme_pkg:Acme\n")
    registry = discover([])
    with pytest.raises(PluginError) as caught:
        registry.find("model", "lenet")
    assert caught.value.message == (
        "model plugin 'lenet' is given twice: by acme-plugins 1.2 (acme_pkg:Acme) and moxserve "
        "(moxserve_plugins.lenet.config:LeNet)"
    )
    assert registry.load("model", "mnist_softmax") is not None
    doubled = [p for p in registry if p.name == "lenet"]
    assert len(doubled) == 2
    assert all("given twice" in p.error for p in doubled)


def test_add_refuses_doubles():
    registry = Registry([Plugin("run", "a", "m:A", "one")])
    with pytest.raises(PluginError, match=r"given twice: by one \(m:A\) and two \(m:B\)"):
        registry.add(Plugin("run", "a", "m:B", "two"))


def test_unknown_names_and_slots():
    registry = discover([])
    with pytest.raises(PluginError, match=r"no optimizer plugin 'adm'; did you mean 'adam'"):
        registry.find("optimizer", "adm")
    with pytest.raises(PluginError, match=r"'optimiser' is no plugin slot; did you mean 'optimizer'"):
        registry.names("optimiser")


def _folder(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "plugins"
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_folder_with_a_file_and_a_package(tmp_path: Path):
    folder = _folder(
        tmp_path,
        regfile_py="PLUGINS = {'model.one': 'regfile:One'}\nclass One: pass\n",
    )
    (folder / "regpack").mkdir()
    (folder / "regpack" / "__init__.py").write_text("PLUGINS: dict[str, str] = {'run.two': 'regpack.inner:Two'}\n")
    (folder / "regpack" / "inner.py").write_text("from regpack.more import NAME\nclass Two: name = NAME\n")
    (folder / "regpack" / "more.py").write_text("NAME = 'two'\n")
    (folder / "README.md").write_text("no plugin")
    registry = discover([folder])
    assert registry.load("model", "one").__name__ == "One"
    assert registry.load("run", "two").name == "two"
    assert str(folder) not in sys.path


def test_a_folder_is_read_without_running_it(tmp_path: Path):
    folder = _folder(tmp_path, boom_py="PLUGINS = {'model.boom': 'boom:X'}\nraise SystemExit('ran')\n")
    assert discover([folder]).find("model", "boom").source == f"folder {folder}"


@pytest.mark.parametrize("text", ["PLUGINS = make()\n", "PLUGINS = {1: 2}\n", "def\n"])
def test_an_unreadable_table_is_listed_with_its_error(tmp_path: Path, text: str):
    folder = _folder(tmp_path, odd_py=text)
    registry = discover([folder])
    broken = [p for p in registry if p.error]
    assert len(broken) == 1
    assert "no readable PLUGINS table" in broken[0].error
    assert "lenet" in registry.names("model")


def test_a_folder_module_never_replaces_another(tmp_path: Path):
    folder = _folder(tmp_path, json_py="PLUGINS = {'model.j': 'json:X'}\nclass X: pass\n")
    with pytest.raises(PluginError, match="a module called 'json' is there already"):
        discover([folder]).load("model", "j")
    import json

    assert hasattr(json, "loads")


def test_the_repository_folder_is_the_shipped_package(repo_root: Path):
    assert [p.error for p in discover([repo_root / "plugins"]) if p.error] == []


def test_two_files_of_one_name_are_two_modules(tmp_path: Path):
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.py").write_text(f"WHO = {part!r}\n")
    assert [load_target(f"{tmp_path}/{part}/model.py:WHO") for part in ("a", "b")] == ["a", "b"]


def test_a_module_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cwd_module_for_test.py").write_text("class Box:\n    value = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_target("cwd_module_for_test:Box.value") == 5


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("json:loads", ""),
        ("os.path:join", ""),
        ("json:laods", "defines no 'laods'; did you mean 'loads'"),
        ("no_such_module:x", "no module 'no_such_module'"),
        ("no_such.module:x", "no module 'no_such.module'"),
        ("./none.py:x", "no such file: './none.py'"),
        ("x", "expected module:attribute"),
    ],
)
def test_targets_are_checked_without_importing(target: str, wrong: str):
    found = check_target(target)
    assert wrong in found
    assert bool(found) == bool(wrong)


def test_discovery_and_parameters_need_no_heavy_package():
    code = (
        "import sys\nfrom moxserve.registry import discover\nfrom moxserve.config.schema import pipeline_schema\n"
        "pipeline_schema(discover())\n"
        "heavy = {'tensorflow', 'sklearn', 'PIL', 'grpc', 'rich', 'onnxruntime', 'locust'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
