"""What is in a model's files, told without running them, and conversions between their formats.

`detect` finds out what a path is, `describe` writes the report of it. `protos` reads and writes SavedModels, MetaGraphs
and GraphDefs without TensorFlow, `graphs` counts what is in them, `stores` reads the values of variables, `records`
warmup files and request logs, `formats` the models of other runtimes, `diff` compares two of any of these. `convert/`
turns one format into another. Only values in checkpoints need TensorFlow.
"""
