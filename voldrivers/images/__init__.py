"""Images: written into a volume where it is attached, extended as they come, and streamed back."""

from voldrivers.images.growth import Growth
from voldrivers.images.progress import ImageProgress
from voldrivers.images.reading import ReadImage, read_image
from voldrivers.images.writing import WriteOptions, WrittenImage, write_image

__all__ = [
    "Growth",
    "ImageProgress",
    "ReadImage",
    "WriteOptions",
    "WrittenImage",
    "read_image",
    "write_image",
]
