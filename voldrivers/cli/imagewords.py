"""The words of `image write` and `image read`."""

import argparse

from voldrivers.cli.parsers import Words, add, group, seconds

_WRITE = """
The volume is attached to this machine without an instance (`voldrivers attach VOLUME`), and is a raw file
or a block device. The image begins at its first byte; what the volume held beyond the image stays there.

Of a file the size is known: the volume is extended once, before anything is written. Of a pipe it is not,
unless --size tells it: the volume doubles when it is full, by at most --overshoot, and becomes as large as
the image once its end is in sight. For that it is detached, extended and attached again, or with
--extend-attached (or the policy image_extend_attached) extended where it is.

A pipe ends alike when its writer is done and when its writer has died: --size or --sha256 tells a part of an
image from the whole.

Until all of it is written and flushed the image is not whole: the volume's messages say so, and
`image read` refuses it. After an error or a kill, write it again: it begins anew.
"""
_READ = """
Gives as many bytes as `image write` wrote and compares their SHA-256 with what was recorded then; of a volume
without a recorded image all bytes. A new file has its name only once it is whole, and is .NAME.part until
then. Standard output gets its bytes before they are compared: the exit code tells.
"""


def add_images(words: Words, everywhere: argparse.ArgumentParser) -> None:
    """Add the commands."""
    images = group(words, "image", "write an image into an attached volume, and read it back")
    write = add(
        images, "write", everywhere, "image_write", "write an image, extending the volume as it comes"
    )
    read = add(images, "read", everywhere, "image_read", "stream the image in a volume back")
    write.epilog, read.epilog = _WRITE, _READ
    for parser in (write, read):
        parser.add_argument("volume", metavar="VOLUME", help="its name or id")
    write.add_argument(
        "--from",
        metavar="FILE",
        dest="source",
        default="-",
        help="what is written; -, the default, is a pipe",
    )
    write.add_argument("--size", metavar="SIZE", help="how large it is: anything else is an error")
    write.add_argument("--sha256", metavar="DIGEST", help="its checksum: any other is an error")
    write.add_argument(
        "--extend-attached",
        action=argparse.BooleanOptionalAction,
        help="extend the volume in place, or detach it for that; as the policy says unless given",
    )
    write.add_argument(
        "--overshoot", metavar="SIZE", help="how much too large the volume may become, 8G unless given"
    )
    write.add_argument("--limit", metavar="SIZE", help="refuse an image that is larger")
    write.add_argument("--md5", action="store_true", help="compute its MD5, too")
    write.add_argument(
        "--stall", metavar="SECONDS", type=seconds, help="give up a pipe that gives nothing for so long, 600"
    )
    read.add_argument(
        "--to", metavar="FILE", default="-", help="a new file; -, the default, is standard output"
    )
    read.add_argument(
        "--size",
        metavar="SIZE",
        help="so much from its beginning; less than all of it is compared with nothing",
    )
