"""The command line: its words, its help, and values that start with a dash."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from voldrivers.cli.failures import MEANINGS
from voldrivers.cli.imagewords import add_images
from voldrivers.cli.output import write
from voldrivers.cli.parsers import GUARD, Parser, Words, add, add_named, add_streaming, group, seconds
from voldrivers.cli.suitewords import add_capabilities, add_suite
from voldrivers.errors import InvalidInput

_SHORT_OPTION = re.compile(r"-(h|v+)")


def read(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line. Raises SystemExit as argparse does: 0 for help, 2 for a wrong one.

    `-1`, `-5G` and `-name` are values, not options, and so is everything after `--`: a wrong size
    or name is then refused as such.
    """
    absent = argparse.Namespace(verbose=0, config=None, volume=None, url=None, token_file=None, ca_file=None)
    parser = _parser()
    arguments, left = parser.parse_known_args(_guarded(argv), absent)
    if arguments.command == "create" and arguments.size is None and len(left) == 1:
        arguments.size = left.pop()  # argparse gives up on it behind an option
    if left:
        parser.error(f"unrecognized arguments: {' '.join(map(str, map(_unguarded, left)))}")
    given = [getattr(arguments, name, None) for name in ("size", "from_volume", "from_snapshot")]
    if arguments.command == "create" and given == [None, None, None]:
        parser.error("the following arguments are required: SIZE, --from-volume or --from-snapshot")
    for name, value in vars(arguments).items():
        setattr(arguments, name, _unguarded(value))
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Refuse what is not UTF-8: it could not be recorded. Raises InvalidInput.

    The name of the configuration's file is not recorded and may be any.
    """
    for name, value in vars(arguments).items():
        for text in value if isinstance(value, list) else [value]:
            if name != "config" and isinstance(text, str) and not _is_utf8(text):
                raise InvalidInput(f"argument {text!a}", "is not UTF-8")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unguarded(value: object) -> object:
    if isinstance(value, list):
        return [_unguarded(each) for each in value]
    return value.removeprefix(GUARD) if isinstance(value, str) else value


def _guarded(argv: Sequence[str]) -> list[str]:
    before = list(argv)
    after: list[str] = []
    if "--" in before:
        cut = before.index("--")
        before, after = before[:cut], before[cut + 1 :]
    guarded = [GUARD + a if re.match(r"-[^-]", a) and not _SHORT_OPTION.fullmatch(a) else a for a in before]
    return guarded + [GUARD + a if a.startswith("-") else a for a in after]


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_arguments: object) -> None:
        from importlib import metadata  # 20 ms: only who asks pays

        write(f"voldrivers {metadata.version('voldrivers')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())
    everywhere = _everywhere()
    parser = Parser(
        prog="voldrivers",
        description="Create, attach and extend volumes, in use or not, and see that every layer agrees.",
        epilog=f"Sizes: 20G, 1.5TiB, 10GB or bytes.\n\nexit codes:\n{codes}",
        parents=[everywhere],
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    words = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_volume(group(words, "volume", "create, list, show, delete, manage volumes"), everywhere)
    _add_snapshot(group(words, "snapshot", "take, list, delete snapshots, and revert to one"), everywhere)
    add_images(words, everywhere)
    _add_attaching(words, everywhere)
    _add_extending(words, everywhere)
    _add_looking(words, everywhere)
    serve = add_streaming(
        words,
        "serve",
        everywhere,
        "serve",
        "let clients reach the volumes of this machine",
    )
    serve.add_argument("--print-policy", action="store_true", help="print who may do what, and nothing else")
    serve.epilog = (
        "The Block Storage API v3. The configuration has a table [service] with listen (ADDRESS:PORT), and\n"
        "a [caller.NAME] for each token. Without callers all of this machine are let in, and nobody else.\n"
        "SIGTERM and Ctrl-C let what is under way end (exit code 0)."
    )
    agent = add_streaming(
        words, "agent", everywhere, "agent", "let controllers on other machines reach this host"
    )
    agent.epilog = (
        "The configuration has a table [agent] with listen (ADDRESS:PORT), token_file, and for TLS\n"
        "certificate and key; and one [host.NAME], NAME being what the controllers call this machine.\n"
        "SIGTERM and Ctrl-C let what is under way end (exit code 0)."
    )
    add_suite(words, everywhere)
    _add_lab(
        group(words, "lab", "virtual machines with real LVM, iSCSI and NFS to try drivers in"), everywhere
    )
    return parser


def _everywhere() -> argparse.ArgumentParser:
    """The options that may stand before the command or after it."""
    parser = argparse.ArgumentParser(add_help=False)
    absent: Any = (
        argparse.SUPPRESS
    )  # Any: typeshed has it as str; a sub-command must not reset what stood before
    parser.add_argument("--config", metavar="FILE", default=absent, help="the configuration, a TOML file")
    parser.add_argument(
        "--url", metavar="URL", default=absent, help="work through the volume service there (`serve`)"
    )
    parser.add_argument("--token-file", metavar="FILE", default=absent, help="our token, for --url")
    parser.add_argument("--ca-file", metavar="FILE", default=absent, help="what vouches for it, for --url")
    parser.add_argument(
        "-v", "--verbose", action="count", default=absent, help="log to stderr; twice: with every program run"
    )
    return parser


def _add_volume(words: Words, everywhere: argparse.ArgumentParser) -> None:
    create = add(words, "create", everywhere, "create", "make a volume, empty or as a copy")
    create.add_argument("volume", metavar="NAME")
    create.add_argument("size", metavar="SIZE", nargs="?", help="not needed for a copy")
    source = create.add_mutually_exclusive_group()
    source.add_argument("--from-volume", metavar="VOLUME", help="copy this one as it is now")
    source.add_argument("--from-snapshot", metavar="SNAPSHOT", help="copy what this one holds")
    manage = add(words, "manage", everywhere, "manage", "make what is on a backend already a volume")
    manage.add_argument("volume", metavar="NAME")
    manage.add_argument("reference", metavar="REFERENCE", help="a file in the share, a logical volume")
    for parser in (create, manage):
        parser.add_argument("--backend", help="needed where the configuration has several")
        parser.add_argument("--format", metavar="raw|qcow2", help="the same as --option format=...")
        parser.add_argument(
            "--preallocate", action="store_true", help="the same as --option preallocate=true"
        )
        parser.add_argument("--multi-attach", action="store_true", help="it may be attached more than once")
        parser.add_argument(
            "--option", metavar="KEY=VALUE", action="append", default=[], help="an option of the driver"
        )
    add_named(words, "unmanage", everywhere, "forget a volume and leave all its bytes where they are")
    add(words, "list", everywhere, "list", "list all volumes")
    for name, help_ in (("show", "show one volume with its extend and messages"), ("delete", "remove one")):
        add_named(words, name, everywhere, help_)


def _add_snapshot(words: Words, everywhere: argparse.ArgumentParser) -> None:
    create = add(words, "create", everywhere, "create_snapshot", "keep a volume as it is now, in use or not")
    create.add_argument("volume", metavar="VOLUME", help="its name or id")
    create.add_argument("snapshot", metavar="NAME")
    listed = add(words, "list", everywhere, "list_snapshots", "list all snapshots")
    listed.add_argument("volume", metavar="VOLUME", nargs="?", help="only those of this one")
    delete = add(
        words, "delete", everywhere, "delete_snapshot", "remove a snapshot; its volume stays as it is"
    )
    revert = add(
        words,
        "revert",
        everywhere,
        "revert",
        "make a detached volume what a snapshot holds, of a file its newest",
    )
    for parser in (delete, revert):
        parser.add_argument("snapshot", metavar="SNAPSHOT", help="its name or id")


def _add_attaching(words: Words, everywhere: argparse.ArgumentParser) -> None:
    attach = add_named(words, "attach", everywhere, "connect a volume to a host and plug it into an instance")
    attach.add_argument("--qmp", metavar="SOCKET", help="the QMP socket of the running QEMU")
    detach = add_named(words, "detach", everywhere, "unplug a volume and take it off its host")
    detach.add_argument("--force", action="store_true", help="forget a lost host without asking it")
    attach.add_argument("--instance", help="the guest on that host; none: the host alone has the volume")
    detach.add_argument("--instance", help="the guest on that host; '' means the attachment without one")
    for parser in (attach, detach):
        parser.add_argument("--host", help="a host of the configuration; needed where there are several")


def _add_extending(words: Words, everywhere: argparse.ArgumentParser) -> None:
    extend = add_named(words, "extend", everywhere, "make a volume larger, in use or not")
    extend.add_argument("size", metavar="SIZE")
    extend.add_argument("--plan", action="store_true", help="say what would be done, change nothing")
    extend.add_argument("--no-wait", action="store_true", help="return once it is recorded; see resume")
    resume = add(
        words, "resume", everywhere, "resume", "carry on what was interrupted or left without answer"
    )
    resume.add_argument("volume", metavar="VOLUME", nargs="?", help="only this one")
    add_named(words, "retry", everywhere, "go on with a failed extend")
    add_named(words, "cancel", everywhere, "ask for an extend to be rolled back, if nothing has grown yet")


def _add_looking(words: Words, everywhere: argparse.ArgumentParser) -> None:
    doctor = add_named(words, "doctor", everywhere, "compare the size in every layer; 10 when one is stale")
    doctor.add_argument("--repair", action="store_true", help="bring the stale layers up")
    add_capabilities(words, everywhere)
    config = group(words, "config", "the configuration")
    add(config, "check", everywhere, "check_config", "explain every key and say what is wrong")


def _add_lab(words: Words, everywhere: argparse.ArgumentParser) -> None:
    up = add(words, "up", everywhere, "lab_up", "start a lab; one that runs stays as it is")
    run = add_streaming(words, "run", everywhere, "lab_run", "run a command in a lab, or in one of its own")
    shell = add_streaming(words, "shell", everywhere, "lab_shell", "open a shell in a lab")
    add(words, "status", everywhere, "lab_status", "list the labs that run, remove what is left of others")
    down = add(words, "down", everywhere, "lab_down", "end a lab; nothing of it is kept")
    save = add(words, "save", everywhere, "lab_save", "keep a lab as it is now, for: lab up --from STATE")
    save.add_argument("state", metavar="STATE")
    lever = add(words, "lever", everywhere, "lab_lever", "make something go wrong in a lab, or right again")
    lever.add_argument("lever", metavar="LEVER", nargs="?", help="without it all are listed")
    lever.add_argument("argv", metavar="ARGUMENT", nargs="*")
    up.add_argument("--topology", choices=("one-host", "two-hosts", "three-hosts"))
    up.add_argument("--vg", metavar="SIZE", help="of the disk under volume group vg0, 8G unless given")
    up.add_argument("--nfs", metavar="SIZE", help="of the disk under /srv/nfs, 4G unless given")
    states = "what `lab save` kept; or attached, or linux-guest"
    up.add_argument("--from", metavar="STATE", dest="state", default="", help=states)
    up.add_argument(
        "--idle", metavar="SECONDS", type=seconds, help="end it without commands for so long, 7200"
    )
    run.add_argument("--timeout", metavar="SECONDS", type=seconds, help="kill the command after so long")
    run.add_argument(
        "--results", metavar="DIR", help="where what it leaves in /results comes; made if missing"
    )
    run.add_argument("argv", metavar="COMMAND", nargs="+", help="after --, with its arguments")
    for parser in (up, run, shell, down, save, lever):
        parser.add_argument("--name", help="one of several labs")
    for parser in (run, shell):
        parser.add_argument("--on", metavar="MACHINE", default="storage", help="or the role that only it has")
