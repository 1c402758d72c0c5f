"""Height, width and channels of an image file, from its first bytes."""

from moxserve.images.header import image_shape

__all__ = ["image_shape"]
