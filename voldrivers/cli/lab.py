"""The commands of `voldrivers lab`: labs that run, and commands in them."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from inspect import Parameter, signature
from pathlib import Path

from voldrivers.cli import failures
from voldrivers.cli.output import Document, ProgressLine, complain, table, write_document, write_lines
from voldrivers.errors import InvalidInput, InvalidSize, NotFound, VolDriverError
from voldrivers.lab.keeper import client, streams
from voldrivers.lab.keeper.protocol import IDLE_S, Command, LabStatus, MachineStatus, Wish
from voldrivers.lab.keeper.runtime import DEFAULT_NAME
from voldrivers.sizes import MiB, TiB, format_size, parse_size

#: ext4 takes 16 TiB (ext4(5)); sparse, so it is free.
_DISK_BYTES = (64 * MiB, 15 * TiB)


def up(args: Namespace) -> int:
    """`lab up`."""
    idle_s = IDLE_S if args.idle is None else args.idle
    wish = Wish(args.topology, _size("--vg", args.vg), _size("--nfs", args.nfs), args.state, idle_s)
    with _advised():
        status = client.up(_name(args), wish, _say_progress)
    return _say(args, _welcome(status), asdict(status))


def run(args: Namespace) -> int:
    """`lab run`: in a lab that runs; without a name and without one in a lab for this command alone."""
    terminal = streams.input_is_terminal()
    command = Command(args.on, tuple(args.argv), _here(), has_input=not terminal, timeout_s=args.timeout)
    return _run(args, command) if args.results is None else _run_for_results(args, command)


def shell(args: Namespace) -> int:
    """`lab shell`."""
    if not streams.input_is_terminal():
        raise InvalidInput("lab shell", "its input is no terminal; use: voldrivers lab run")
    env = {"TERM": os.environ.get("TERM", "dumb"), "PS1": r"\h:\w# "}
    return _run(args, Command(args.on, ("bash", "--norc"), _here(), env, streams.terminal_size()))


def status(args: Namespace) -> int:
    """`lab status`: of all labs of this user."""
    found = list(client.found())
    running = [each.status for each in found if each.status]
    rows = [(s.name, s.topology, _machines(s), _since(s), _note(s)) for s in running]
    lines = table(("LAB", "TOPOLOGY", "MACHINES", "SINCE", ""), rows) if rows else ["no lab runs"]
    _say(args, lines, [asdict(each) for each in running])
    for each in found:
        if each.problem:
            complain(f"lab {each.name}: {each.problem}")
    return failures.OK


def down(args: Namespace) -> int:
    """`lab down`."""
    name = _name(args)
    with _advised():
        ran = client.down(name)
    return _say(args, [f"lab {name}: {'ended' if ran else 'does not run'}"], {"name": name, "ran": ran})


def save(args: Namespace) -> int:
    """`lab save`."""
    name, state = _name(args), args.state
    with _advised():
        client.save(name, state)
    text = f"lab {name}: saved, and goes on; again from here: voldrivers lab up --from {state}"
    return _say(args, [text], {"name": name, "state": state})


def lever(args: Namespace) -> int:
    """`lab lever`; without a name all are listed."""
    name = _name(args)
    if args.lever is None:
        return _list_levers(args)
    with _advised():
        client.pull(name, args.lever, args.argv)
    text = f"lab {name}: {' '.join([args.lever, *args.argv])}: done"
    return _say(args, [text], {"name": name, "lever": args.lever, "arguments": args.argv})


COMMANDS: Mapping[str, Callable[[Namespace], int]] = {
    "lab_up": up,
    "lab_run": run,
    "lab_shell": shell,
    "lab_status": status,
    "lab_down": down,
    "lab_save": save,
    "lab_lever": lever,
}


def _run_for_results(args: Namespace, command: Command) -> int:
    """Run a command and unpack what it left, if it failed or was killed too."""
    from voldrivers.lab.keeper.results import Results  # tarfile: only who asks pays

    with Results(Path(args.results)) as results:
        try:
            code = _run(args, replace(command, results=True), results.add)
        except VolDriverError:
            with suppress(VolDriverError):  # this error says more than that the results are not whole
                _say_left_out(results.unpack())
            raise
        _say_left_out(results.unpack())
        return code


def _say_left_out(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        complain(f"results: {sentence}")


def _run(args: Namespace, command: Command, take_results: streams.Take = lambda _: None) -> int:
    with _advised():
        if args.name is not None or client.is_running(_name(args)):
            return client.run(_name(args), command, take_results)
        line = ProgressLine(sys.stderr, quiet=args.verbose > 0)
        with client.private(Wish(), line.show) as name:
            line.clear()
            return client.run(name, command, take_results)


def _list_levers(args: Namespace) -> int:
    from voldrivers.lab.levers import LEVERS  # the whole lab: only who asks pays

    words = {
        name: [_shown(parameter) for parameter in list(signature(function).parameters.values())[1:]]
        for name, function in LEVERS.items()
    }
    does = {name: (function.__doc__ or "").partition("\n")[0] for name, function in LEVERS.items()}
    rows = [(name, " ".join(words[name]), does[name]) for name in LEVERS]
    document: Document = [{"lever": n, "arguments": words[n], "does": does[n]} for n in LEVERS]
    return _say(args, table(("LEVER", "ARGUMENTS", "DOES"), rows), document)


def _shown(parameter: Parameter) -> str:
    word = parameter.name.upper()
    return word if parameter.default is Parameter.empty else f"[{word}]"


@contextmanager
def _advised() -> Iterator[None]:
    """Say what to do next in the words of the lab: the hints beside the errors are those for volumes."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        stopped.add_note("see: voldrivers lab status")
        raise
    except VolDriverError as error:
        if isinstance(error, NotFound) and error.kind == "lab":
            error.add_note(f"start it: voldrivers lab up --name {error.name}")
        elif not getattr(error, "__notes__", ()):
            error.add_note("see: voldrivers lab status")
        raise


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise InvalidInput("the working directory", "it is gone") from error


def _name(args: Namespace) -> str:
    return DEFAULT_NAME if args.name is None else str(args.name)


def _size(option: str, text: str | None) -> int | None:
    try:
        size_bytes = None if text is None else parse_size(text)
    except ValueError as error:
        raise InvalidSize(option, str(error), str(text)) from error
    if size_bytes is not None and (not _DISK_BYTES[0] <= size_bytes <= _DISK_BYTES[1] or size_bytes % MiB):
        smallest, largest = map(format_size, _DISK_BYTES)
        raise InvalidSize(option, f"a disk of the lab has {smallest} to {largest}, in whole MiB", str(text))
    return size_bytes


def _say_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say(args: Namespace, lines: Sequence[str], document: Document) -> int:
    if args.json:
        write_document(document)
    else:
        write_lines(lines)
    return failures.OK


def _welcome(status: LabStatus) -> list[str]:
    named = "" if status.name == DEFAULT_NAME else f" --name {status.name}"
    rows = [(m.name, ", ".join(m.addresses), _has(status, m)) for m in status.machines]
    return [
        f"lab {status.name} is ready: {status.topology}, since {_since(status)}",
        *table(("MACHINE", "ADDRESSES", "HAS"), rows),
        f"run in it:   voldrivers lab run{named} [--on MACHINE] -- COMMAND",
        f"look around: voldrivers lab shell{named} [--on MACHINE]",
        f"end it:      voldrivers lab down{named}",
    ]


def _has(status: LabStatus, machine: MachineStatus) -> str:
    here = {
        "storage": f"vg0 of {format_size(status.vg_bytes)}, /srv/nfs of {format_size(status.nfs_bytes)}, LIO",
        "compute": "open-iscsi, NFS client, QEMU",
    }
    return ", ".join(here[role] for role in machine.roles)


def _machines(status: LabStatus) -> str:
    return ", ".join(m.name if m.state == "running" else f"{m.name} ({m.state})" for m in status.machines)


def _since(status: LabStatus) -> str:
    return datetime.fromisoformat(status.since).strftime("%d %b %H:%M")


def _note(status: LabStatus) -> str:
    if not status.ready:
        return "starting"
    return "for one command" if status.private else ""
