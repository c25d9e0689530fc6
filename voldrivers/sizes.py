"""Sizes: the rule by which a backend rounds, and sizes as people write and read them.

Everything inside voldrivers is a whole number of bytes. Rounding happens once, at admission.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from oslo_utils import units

KiB, MiB, GiB, TiB = units.Ki, units.Mi, units.Gi, units.Ti

#: The largest size any volume may have; 2^63 and more does not fit off_t (see lseek(2)).
LARGEST_BYTES = units.Ei

_BINARY = {"": 1, "K": units.Ki, "M": units.Mi, "G": units.Gi, "T": units.Ti, "P": units.Pi, "E": units.Ei}
_DECIMAL = {"K": units.k, "M": units.M, "G": units.G, "T": units.T, "P": units.P, "E": units.E}
#: More digits than `parse_size` reads.
_ENDLESS = 10**30
_SIZE = re.compile(r"(?P<number>\d{1,30}(?:\.\d{1,30})?)\s*(?P<prefix>[KMGTPE]?)(?P<kind>iB|B|)", re.I)


@dataclass(frozen=True)
class SizeRule:
    """The sizes a backend can make: multiples of a granularity between a minimum and a maximum.

    `minimum_bytes` and `maximum_bytes` need not be multiples themselves; the sizes that the rule
    gives are.
    """

    granularity_bytes: int = 1
    minimum_bytes: int = 1
    maximum_bytes: int = LARGEST_BYTES

    def __post_init__(self) -> None:
        """Refuse a rule that no size can satisfy (ValueError: a mistake in the driver)."""
        if self.granularity_bytes < 1 or self.minimum_bytes < 1:
            raise ValueError(f"granularity and minimum must be at least one byte: {self}")
        if self._up(self.minimum_bytes) > self.maximum_bytes:
            raise ValueError(f"no multiple of the granularity lies between minimum and maximum: {self}")

    def round_up(self, asked_bytes: int) -> int:
        """Give the smallest size of this rule that holds `asked_bytes`.

        Never smaller than asked, monotone and idempotent. Raises ValueError, with a reason for
        people, for a size below one byte or above the maximum.
        """
        if isinstance(asked_bytes, bool) or not isinstance(asked_bytes, int):
            raise ValueError("a size is a whole number of bytes")
        if asked_bytes < 1:
            raise ValueError("a size must be at least one byte")
        size_bytes = self._up(max(asked_bytes, self.minimum_bytes))
        if size_bytes > self.maximum_bytes:
            raise ValueError(f"the largest size here is {format_size(self.maximum_bytes)}")
        return size_bytes

    def _up(self, size_bytes: int) -> int:
        return -(-size_bytes // self.granularity_bytes) * self.granularity_bytes


def parse_size(text: str) -> int:
    """Read a size as people write it: `20G`, `1.5TiB`, `512`, `10GB`.

    A letter alone and `iB` are powers of 1024, as in qemu-img and lvm; `KB` to `EB` are powers of
    1000 (IEC 80000-13). `1.1T` is no whole number of bytes: it is rounded up, as nothing is made
    smaller than asked. Raises ValueError, with a reason for people, for anything else; for a fraction
    of plain bytes too.

    >>> parse_size("20G") == 20 * 1024**3, parse_size("10 GB") == 10**10
    (True, True)
    >>> parse_size("0.1K")
    103
    """
    match = _SIZE.fullmatch(text.strip()) if text.isascii() else None
    if match is None:
        raise ValueError("write a size as 20G, 1.5TiB, 10GB or a number of bytes")
    prefix, kind = match["prefix"].upper(), match["kind"].lower()
    if kind == "ib" and not prefix:
        raise ValueError("write a size as 20G, 1.5TiB, 10GB or a number of bytes")
    factor = _DECIMAL[prefix] if kind == "b" and prefix else _BINARY[prefix]
    numerator, denominator = Decimal(match["number"]).as_integer_ratio()
    if denominator != 1 and not prefix:
        raise ValueError("that is not a whole number of bytes")
    return -(-numerator * factor // denominator)


def format_size(size_bytes: int) -> str:
    """Print a size so that people can read it and `parse_size` gives back every byte.

    In powers of 1024, or of 1000 where the figure is shorter so. What is far beyond any size (10^30) has
    no figure: Python refuses to print an integer of more than 4300 digits.

    >>> format_size(20 * 1024**3), format_size(1536), format_size(1025), format_size(10**10)
    ('20 GiB', '1.5 KiB', '1025 B', '10 GB')
    """
    if abs(size_bytes) >= _ENDLESS:
        return "10^30 B or more" if size_bytes > 0 else "-10^30 B or less"
    whole_bytes = abs(size_bytes)
    shown = [_exact(whole_bytes, _BINARY, "iB"), f"{whole_bytes} B", _exact(whole_bytes, _DECIMAL, "B")]
    shortest = min(filter(None, shown), key=lambda text: text.index(" "))
    return f"-{shortest}" if size_bytes < 0 else shortest


def format_room(room_bytes: int) -> str:
    """Print how much room there is: rounded down to three digits, never for the size of a volume.

    >>> format_room(1650233440 * 1024), format_room(20 * 1024**3), format_room(1000)
    ('about 1.53 TiB', '20 GiB', '1 KB')
    """
    prefix = next((p for p in "EPTGMK" if room_bytes >= _BINARY[p]), "")
    if not prefix or room_bytes >= _ENDLESS:
        return format_size(room_bytes)
    hundredths, rest = divmod(room_bytes * 100, _BINARY[prefix])
    step = 100 if hundredths >= 100_00 else 10 if hundredths >= 10_00 else 1
    shown = hundredths // step * step
    about = "about " if rest or shown != hundredths else ""
    return f"{about}{_decimal(shown, 2)} {prefix}iB"


def _exact(size_bytes: int, factors: Mapping[str, int], unit: str) -> str:
    """Print in the largest unit that takes at most three decimals; "" where there is none."""
    for prefix in "EPTGMK":
        thousandths, rest = divmod(size_bytes * 1000, factors[prefix])
        if size_bytes >= factors[prefix] and not rest:
            return f"{_decimal(thousandths, 3)} {prefix}{unit}"
    return ""


def _decimal(scaled: int, decimals: int) -> str:
    whole, fraction = divmod(scaled, 10**decimals)
    return f"{whole}.{fraction:0{decimals}d}".rstrip("0").rstrip(".")
