"""Encoded images: looked at, decoded, cropped and resized in batches, cached. No TensorFlow."""
