"""Pipelines: what fills the slots of a YAML file (`slots`), and how a filled one runs (`runner`).

Reading the file is `moxserve.config`, finding plugins is `moxserve.registry`. TensorFlow is imported inside the
runner's functions only.
"""
