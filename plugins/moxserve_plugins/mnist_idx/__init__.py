"""Input plugin `mnist_idx`: MNIST's four gzipped IDX files."""
