"""Sample data sets that `moxserve data NAME --out DIR` writes: real, small, offline.

Nothing here reads data for training. `digits` is scikit-learn's bundled handwritten digits, as an image
folder, MNIST-format IDX files and TFRecords.
"""
