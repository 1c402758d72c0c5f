"""From a source to a published version directory.

`job`: what is to be exported. `exporter`: the one way to do it, step by step in its docstring. `publish`: how a version
comes to be, in a folder or a bucket, and how old ones go. `versions`: what names them. `manifest`: what is written
beside the model. `compare`: when are two answers the same. Of these only `exporter` imports TensorFlow, as do its
steps: `graphs`, `signatures`, `savedmodel`, `verify`, `warmup`.
"""
