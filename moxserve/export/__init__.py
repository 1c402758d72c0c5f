"""From a checkpoint to a published version directory.

`job`: what is to be exported. `exporter`: the one way to do it. `versions`: how a version directory comes to be.
`manifest`: what is written beside the model. Importing this package imports no TensorFlow.
"""
