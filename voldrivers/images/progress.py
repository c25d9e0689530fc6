"""How far an image is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageProgress:
    """What of an image is done; `image_bytes` is how large it will be, if that is known."""

    done_bytes: int
    image_bytes: int | None
    volume_bytes: int
    extends: int = 0


def no_progress(_progress: ImageProgress) -> None:
    """Show nothing."""
