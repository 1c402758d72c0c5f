"""What a user may write in a pipeline file, and how every mistake in it is told with its place. No TensorFlow.

`tree` reads YAML with positions, `interpolate` fills in `${VARIABLES}`, `override` applies `--set`, `models` are the
stages and the base of plugin parameters, `pipeline` puts them together and collects all problems, `schema` is the JSON
schema for editors, `dump` writes a configuration out again.
"""

from moxserve.config.models import ExistingDir, ExistingFile, OutputPath, PluginConfig, StrictModel
from moxserve.config.pipeline import LoadedPipeline, PipelineConfig, load_pipeline

__all__ = [
    "ExistingDir",
    "ExistingFile",
    "LoadedPipeline",
    "OutputPath",
    "PipelineConfig",
    "PluginConfig",
    "StrictModel",
    "load_pipeline",
]
