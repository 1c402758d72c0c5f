"""Encoded images: looked at, decoded, cropped and resized in batches, cached. No TensorFlow.

`header` tells format and size by content, `decode` makes pixels, `geometry` says which part is wanted and `crops` draws
it at random, `batch` does all of it for many images in the threads of `pool`, with random numbers from `rng`, `bad`
counts what cannot be decoded, `cache` keeps bytes or pixels in the files of `pack`.
"""
