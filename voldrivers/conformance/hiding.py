"""Hiding: what a driver was given in confidence is in no result, whatever the driver tells."""

import re
from dataclasses import fields, is_dataclass, replace

from voldrivers.conformance.subject import Subject
from voldrivers.conformance.verdicts import Result

#: What options that are secret are called, marked as such or not.
SECRET = re.compile(r"passw|passphrase|secret|token|private|api_?key", re.IGNORECASE)
_HIDDEN = "(hidden)"


def secret_options(subject: Subject) -> set[str]:
    """Give the values of the driver's options that nobody may see, by their mark or by their name."""
    kind = subject.driver_class.options_type
    marked = (
        {each.name for each in fields(kind) if each.metadata.get("secret")} if is_dataclass(kind) else set()
    )
    given = subject.options.items()
    return {str(value) for name, value in given if value and (name in marked or SECRET.search(name))}


def hidden(result: Result, subject: Subject) -> Result:
    """Give a result without them: it is printed, and kept with those of others."""
    secrets = sorted(secret_options(subject), key=len, reverse=True)

    def hide(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, _HIDDEN)
        return text

    readings = {
        name: hide(str(value)) if hide(str(value)) != str(value) else value
        for name, value in result.readings.items()
    }
    return replace(result, text=hide(result.text), readings=readings, calls=tuple(map(hide, result.calls)))
