"""Whole numbers in JSON: 1 and 1.0 are the same one (RFC 8259, 6; JSON Schema), true and "1" are none."""

from typing import Annotated

from pydantic import BeforeValidator, Field


def number(given: object, wrong: str = "must be a whole number") -> int:
    """Take a whole number. Raises ValueError."""
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise ValueError(wrong)
    return given


#: What JSON's numbers hold exactly, whoever reads them (RFC 8259, 6).
_MOST = 2**53 - 1
Bytes = Annotated[int, Field(ge=1, le=_MOST), BeforeValidator(number)]
Count = Annotated[int, Field(ge=0, le=_MOST), BeforeValidator(number)]
