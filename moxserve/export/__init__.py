"""From a checkpoint to a published version directory.

`job`: what is to be exported. `exporter`: the one way to do it, step by step in its docstring. `versions`: how a
version directory comes to be. `manifest`: what is written beside the model. `compare`: when are two answers the same.
Of these only `exporter` imports TensorFlow, as do its steps: `graphs`, `signatures`, `savedmodel`, `verify`, `warmup`.
"""
