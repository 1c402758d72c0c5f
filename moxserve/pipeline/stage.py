"""One stage at work: what it is doing is told, and an error in it names the stage and its plugin."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moxserve.config.models import PluginConfig
from moxserve.config.pipeline import LoadedPipeline
from moxserve.errors import ConfigError, InterruptedRunError, MissingExtraError, MoxserveError, first_line
from moxserve.pipeline.slots import ParameterError
from moxserve.talk import Talk, silent

__all__ = ["StageError", "Talk", "first_line", "silent", "stage"]

_OURS = ("tensorflow", "moxserve/", "moxserve_plugins/", "contextlib")


class StageError(MoxserveError):
    """The code of a plugin, or of a user's function, raised an error that is none of ours; it is chained."""


@contextmanager
def stage(
    loaded: LoadedPipeline, name: str, talk: Talk, diagnose: Callable[[], str | None] | None = None
) -> Iterator[None]:
    """Run the block as one stage.

    Args:
        loaded: the pipeline.
        name: the stage.
        talk: told the stage's name and plugin.
        diagnose: asked for the cause when TensorFlow failed.

    Raises:
        ConfigError: a parameter does not go with the rest, with its place.
        MissingExtraError: TensorFlow is not installed.
        StageError: anything that is no MoxserveError went wrong; the cause is chained.
        MoxserveError: as raised inside, its message preceded by stage and plugin.
    """
    plugin = getattr(loaded.config, name)
    title = f"{name} ({plugin.plugin})" if isinstance(plugin, PluginConfig) else name
    talk(title)
    try:
        yield
    except ParameterError as error:
        raise ConfigError([loaded.problem(error.key, error.reason)]) from error
    except (ConfigError, InterruptedRunError):
        raise
    except MoxserveError as error:
        error.message = f"{title}: {error.message}"
        error.args = (error.message,)
        cause = error.__cause__
        if diagnose is not None and cause is not None and _is_tensorflow(cause) and (found := diagnose()):
            error.hint = found if error.hint is None else f"{error.hint}; {found}"
        raise
    except Exception as error:
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "tensorflow":
            raise MissingExtraError("TensorFlow", "tensorflow", title) from error
        found = diagnose() if diagnose is not None and _is_tensorflow(error) else None
        place = _place(error)
        told = found or f"{type(error).__name__}: {first_line(error)}"
        where = f" (at {place})" if place and not found else ""
        hint = None if found else "`moxserve -v …` shows the traceback"
        raise StageError(f"{title}: {told}{where}", hint=hint) from error


def _is_tensorflow(error: BaseException) -> bool:
    return type(error).__module__.startswith("tensorflow")


def _place(error: Exception) -> str:
    """Return the innermost place in code that is neither TensorFlow's nor ours: most likely the user's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename.replace("\\", "/") for part in _OURS):
            return f"{frame.filename}:{frame.lineno} in {frame.name}"
    return ""
