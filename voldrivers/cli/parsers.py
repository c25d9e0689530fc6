"""What the command line is made of: parsers whose mistakes are told as all others are, groups, commands."""

import argparse
from typing import Any, NoReturn

from voldrivers.cli.output import write

#: Stands before a value that starts with a dash, so that argparse takes it for no option. No argument
#: of a program can hold it (execve(2)).
GUARD = "\0"


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are told as all others are."""

    def __init__(self, **kwargs: Any) -> None:  # Any: as argparse.ArgumentParser
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def print_help(self, file: object = None) -> None:  # noqa: ARG002 - as argparse.ArgumentParser
        """Print the help; a reader that went away is no error."""
        write(self.format_help().rstrip())

    def error(self, message: str) -> NoReturn:
        """Print one sentence and the usage, and leave with exit code 2."""
        text = message.replace(GUARD, "").replace("\\x00", "")
        self.exit(2, f"voldrivers: {text}\n{self.format_usage()}")


Words = Any  # argparse's action for sub-commands has no public type


def group(words: Words, name: str, help_: str) -> Words:
    """Add a word that others follow."""
    return words.add_parser(name, help=help_, description=help_).add_subparsers(
        metavar="COMMAND", required=True, parser_class=Parser
    )


def add(
    words: Words, name: str, everywhere: argparse.ArgumentParser, command: str, help_: str
) -> argparse.ArgumentParser:
    """Add one command; every one can print JSON."""
    parser: argparse.ArgumentParser = words.add_parser(
        name, parents=[everywhere], help=help_, description=help_
    )
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print one JSON document, sizes in bytes")
    return parser


def seconds(text: str) -> float:
    """Read a number of seconds, as argparse has types read."""
    try:
        read = float(text.removeprefix(GUARD))
    except ValueError:
        read = 0.0
    if not 0 < read < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text.removeprefix(GUARD)!r}")
    return read


def add_streaming(
    words: Words, name: str, everywhere: argparse.ArgumentParser, command: str, help_: str
) -> argparse.ArgumentParser:
    """Add a command whose output is that of another one."""
    parser: argparse.ArgumentParser = words.add_parser(
        name, parents=[everywhere], help=help_, description=help_
    )
    parser.set_defaults(command=command)
    return parser


def add_named(
    words: Words, name: str, everywhere: argparse.ArgumentParser, help_: str
) -> argparse.ArgumentParser:
    """Add a command about one volume."""
    parser = add(words, name, everywhere, name, help_)
    parser.add_argument("volume", metavar="VOLUME", help="its name or id")
    return parser
