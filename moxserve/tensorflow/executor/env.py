"""How the process must be set up for graph mode: done here, once, when `moxserve.tensorflow` is imported.

Everything else in this package takes `tf` and `tf1` from here, so that no module can meet a TensorFlow that is not set
up. Three switches are process-wide: eager execution off, resource variables on, and Keras 2 (`tf_keras`) behind
`tf.keras`, because `tf.compat.v1.layers` exists only there. A program that also needs eager TensorFlow runs it in
another process.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from moxserve.light import keras_when_used

__all__ = ["check_version", "setup", "tf", "tf1"]

_QUIET = "TF_CPP_MIN_LOG_LEVEL"
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
_TESTED = "2.21"  # as pyproject.toml asks for


def _choose_keras() -> None:
    """Route `tf.keras` and `tf.compat.v1.layers` to Keras 2; both are looked up on first use, after this."""
    if os.environ.setdefault(_LEGACY_KERAS, "1") in ("1", "True", "true"):
        return
    warnings.warn(
        f"{_LEGACY_KERAS}={os.environ[_LEGACY_KERAS]}: tf.compat.v1.layers will not work; unset it to use them",
        stacklevel=2,
    )


def _alias_legacy_layers() -> None:
    """Give `tf_keras.legacy_tf_layers` its old name back: `tf_slim` imports it, and the package moved it to `src`.

    The aliases are loaded on demand by a finder, because importing `tf_keras` costs half a second.
    """
    from importlib import abc, import_module, machinery

    class LegacyLayersFinder(abc.MetaPathFinder, abc.Loader):
        prefix = "tf_keras.legacy_tf_layers"

        def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> machinery.ModuleSpec | None:
            if fullname != self.prefix and not fullname.startswith(self.prefix + "."):
                return None
            return machinery.ModuleSpec(fullname, self, is_package=fullname == self.prefix)

        def create_module(self, spec: machinery.ModuleSpec) -> Any:
            module = import_module(spec.name.replace("tf_keras.", "tf_keras.src.", 1))
            spec.loader_state = module.__spec__
            return module

        def exec_module(self, module: Any) -> None:
            """Give the module, which was loaded long ago, its own spec back; importlib has put the alias' there."""
            module.__spec__ = module.__spec__.loader_state

    if not any(type(finder).__name__ == "LegacyLayersFinder" for finder in sys.meta_path):
        # Before the path finder, which would load a second copy of the submodules from the package's folder.
        sys.meta_path.insert(0, LegacyLayersFinder())


def check_version(version: str) -> None:
    """Warn of a TensorFlow that this package was not tested with: what breaks then, breaks somewhere else.

    Args:
        version: of TensorFlow, such as `2.21.0`.
    """
    if not f"{version}.".startswith(f"{_TESTED}."):
        warnings.warn(
            f"moxserve is made for TensorFlow {_TESTED}, and {version} is installed: errors about missing attributes "
            f'or modules may come from that; pip install "tensorflow=={_TESTED}.*" "tf-keras=={_TESTED}.*"',
            RuntimeWarning,
            stacklevel=2,
        )


def setup() -> None:
    """Switch this process to graph mode with resource variables, and let INFO lines of TensorFlow's logger through.

    The level is raised only if nobody chose one: the console lines of a run are INFO, and TensorFlow hides those by
    default.
    """
    if tf1.executing_eagerly():
        tf1.disable_eager_execution()
    tf1.enable_resource_variables()
    # Graph mode is what this framework is made of: being told so once per function of the user's helps nobody.
    deprecation._PRINT_DEPRECATION_WARNINGS = False
    warnings.filterwarnings("ignore", r"`tf\.layers\.", UserWarning)
    if tf1.logging.get_verbosity() == tf1.logging.WARN:
        tf1.logging.set_verbosity(tf1.logging.INFO)


_choose_keras()
os.environ.setdefault(_QUIET, "1")  # the C++ INFO lines at import and session start say nothing about the user's job
_alias_legacy_layers()

with keras_when_used():  # the variables above are read in it
    import tensorflow as tf
from tensorflow.python.util import deprecation  # noqa: E402

tf1 = tf.compat.v1
check_version(tf.__version__)
setup()
