"""The commands: each reads its arguments, asks the engine, prints, and gives its exit code."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from voldrivers import registry
from voldrivers.cli import documents, failures, texts
from voldrivers.cli.output import Document, ProgressLine, complain, table, write, write_document
from voldrivers.errors import InvalidInput, InvalidSize, OutcomeUnknown, VolDriverError
from voldrivers.extend.engine import Engine
from voldrivers.model import Extend, Volume, VolumeStatus
from voldrivers.sizes import format_size, parse_size


def create(args: Namespace) -> int:
    """`volume create`."""
    size_bytes = _size(args)
    with _engine(args) as engine:
        options = _options(args)
        volume = engine.create_volume(
            args.volume, size_bytes, args.backend, options, multi_attach=args.multi_attach
        )
    text = f"{volume.title}: {format_size(volume.size_bytes)} on backend {volume.backend}"
    return _say(args, text, documents.volume(volume))


def list_volumes(args: Namespace) -> int:
    """`volume list`."""
    with _engine(args) as engine:
        volumes = engine.volumes()
    rows = [
        (v.name, format_size(v.size_bytes), v.status, v.backend, ", ".join(a.place for a in v.attachments))
        for v in volumes
    ]
    text = table(("NAME", "SIZE", "STATUS", "BACKEND", "ATTACHED TO"), rows) if rows else "no volumes"
    return _say(args, text, [documents.volume(v) for v in volumes])


def show(args: Namespace) -> int:
    """`volume show`."""
    with _engine(args) as engine:
        volume = engine.volume(args.volume)
        extend, messages = engine.last_extend(volume), engine.messages(volume)
    document = documents.volume(volume)
    document["last_extend"] = documents.extend(volume, extend) if extend else None
    document["messages"] = [{"at": m.at.isoformat(), "text": m.text} for m in messages]
    lines = [
        ("name", volume.name),
        ("id", volume.id),
        ("size", format_size(volume.size_bytes)),
        ("backend size", format_size(volume.backend_bytes)),
        ("status", volume.status),
        ("backend", volume.backend),
        ("multi-attach", "yes" if volume.multi_attach else "no"),
        *(("attachment", texts.attachment(each)) for each in volume.attachments),
    ]
    if extend:
        lines.append(("last extend", texts.extend(extend)))
    lines += [("message", f"{m.at:%Y-%m-%d %H:%M:%S} {m.text}") for m in messages]
    return _say(args, table(lines[0], lines[1:]), document)


def delete(args: Namespace) -> int:
    """`volume delete`."""
    with _engine(args) as engine:
        engine.delete_volume(args.volume)
    return _say(args, f"volume {args.volume}: deleted", {"volume": args.volume, "deleted": True})


def attach(args: Namespace) -> int:
    """`attach`."""
    with _engine(args) as engine:
        monitor = Path(args.qmp).absolute() if args.qmp else None
        attachment = engine.attach(args.volume, args.host, args.instance, monitor)
    text = f"volume {args.volume}: attached to {attachment.place} as {attachment.device_path}"
    return _say(args, text, documents.attachment(attachment))


def detach(args: Namespace) -> int:
    """`detach`."""
    with _engine(args) as engine:
        engine.detach(args.volume, args.host, args.instance, force=args.force)
        volume = engine.volume(args.volume)
    return _say(args, f"{volume.title}: detached, {volume.status}", documents.volume(volume))


def extend(args: Namespace) -> int:
    """`extend`."""
    with _engine(args) as engine:
        volume = engine.volume(args.volume)
        size_bytes = _size(args, volume.size_bytes)
        if args.plan:
            plan = engine.plan(args.volume, size_bytes)
            change = f"{format_size(plan.from_bytes)} to {format_size(plan.to_bytes)}"
            text = "\n  ".join((f"{volume.title}: from {change}, grown by {plan.grown_by}", *plan.steps))
            return _say(args, text, documents.plan(plan))
        return _say_extend(args, volume, engine.extend(args.volume, size_bytes, wait=not args.no_wait))


def retry(args: Namespace) -> int:
    """`retry`."""
    with _engine(args) as engine:
        volume = engine.volume(args.volume)
        return _say_extend(args, volume, engine.retry(args.volume))


def cancel(args: Namespace) -> int:
    """`cancel`."""
    with _engine(args) as engine:
        volume = engine.volume(args.volume)
        asked = engine.cancel(args.volume)
    text = (
        f"{volume.title}: asked to roll its extend back, if nothing has grown yet;"
        f" if no process works on it: voldrivers resume {volume.name}"
    )
    return _say(args, text, documents.extend(volume, asked))


def resume(args: Namespace) -> int:
    """`resume`: everything is tried, the first failure gives the exit code."""
    with _engine(args) as engine:
        resumed = engine.resume(args.volume)
    lines = [f"{r.volume.title}: was {r.what}, now {r.outcome}" for r in resumed]
    _say(args, "\n".join(lines) or "nothing to resume", [documents.resumed(r) for r in resumed])
    errors = [(r.error, r.volume.name) for r in resumed if r.error]
    for error, name in errors:
        complain(failures.sentence(error, name))
    return failures.exit_code(errors[0][0]) if errors else failures.OK


def doctor(args: Namespace) -> int:
    """`doctor`."""
    with _engine(args) as engine:
        ledger = engine.repair(args.volume) if args.repair else engine.ledger(args.volume)
        volume = engine.volume(args.volume)
    settled = volume.status in texts.STEADY and not any(row.stale for row in ledger)
    _say(args, texts.ledger(volume, ledger), documents.ledger(volume, ledger, settled=settled))
    return failures.OK if settled else failures.STALE


def capabilities(args: Namespace) -> int:
    """`capabilities`: of every installed driver, with or without a configuration."""
    listed = [documents.declared(name) for name in registry.driver_names()]
    rows = [(d.driver, c.name, c.value, c.unless) for d in listed for c in d.capabilities]
    lines = [table(("DRIVER", "CAPABILITY", "DECLARED", "NOT FOR"), rows)]
    lines += [f"driver {d.driver} cannot be used: {d.problem}" for d in listed if d.problem]
    return _say(args, "\n".join(lines), [d.document() for d in listed])


def check_config(args: Namespace) -> int:
    """`config check`."""
    checked = registry.check(_config_path(args))
    rows = [
        (s.table or "-", s.help.name, s.value or "", s.help.kind, s.help.default, s.help.meaning)
        for s in checked.settings
    ]
    text = table(("TABLE", "KEY", "VALUE", "TYPE", "DEFAULT", "MEANING"), rows)
    verdict = f"wrong: {len(checked.problems)}" if checked.problems else "nothing is wrong"
    _say(args, f"{checked.path}\n\n{text}\n\n{verdict}", documents.checked(checked))
    for problem in checked.problems:
        complain(str(problem))
    return failures.exit_code(checked.problems[0]) if checked.problems else failures.OK


COMMANDS: Mapping[str, Callable[[Namespace], int]] = {
    "create": create,
    "list": list_volumes,
    "show": show,
    "delete": delete,
    "attach": attach,
    "detach": detach,
    "extend": extend,
    "retry": retry,
    "cancel": cancel,
    "resume": resume,
    "doctor": doctor,
    "capabilities": capabilities,
    "check_config": check_config,
}


@contextmanager
def _engine(args: Namespace) -> Iterator[Engine]:
    """Open the engine; an error leaves with what to do next, by the status that the volume has now."""
    line = ProgressLine(sys.stderr, quiet=args.verbose > 0)
    with _opened(args, line) as engine:
        try:
            yield engine
        except VolDriverError as error:
            _advise(error, engine, args.volume)
            raise
        finally:
            line.clear()


def _opened(args: Namespace, line: ProgressLine) -> Engine:
    try:
        config = registry.load(_config_path(args))
    except VolDriverError as error:
        error.add_note("see: voldrivers config check")
        raise
    try:
        return Engine.open(config, lambda progress: line.show(texts.progress(progress)))
    except VolDriverError as error:
        error.add_note("nothing was changed")
        raise


def _config_path(args: Namespace) -> Path:
    return registry.find_config(Path(args.config) if args.config is not None else None)


def _advise(error: VolDriverError, engine: Engine, name: str | None) -> None:
    """Note the command that goes on from here, if the volume is left in the middle of something."""
    if name is None or isinstance(error, InvalidInput | OutcomeUnknown):
        return
    try:
        status = engine.volume(name).status
    except VolDriverError:  # there is no such volume; the error says what there is to say
        return
    if status is VolumeStatus.ERROR_EXTENDING:
        error.add_note(f"mend the cause, then run: voldrivers retry {name}")
    elif status not in texts.STEADY:
        error.add_note(f"if no process works on it, run: voldrivers resume {name}")


def _size(args: Namespace, current_bytes: int | None = None) -> int:
    try:
        return parse_size(args.size)
    except ValueError as error:
        raise InvalidSize(f"volume {args.volume}", str(error), args.size, current_bytes) from error


def _options(args: Namespace) -> dict[str, object]:
    options: dict[str, object] = {}
    for text in args.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidInput(f"option {text}", "must be KEY=VALUE")
        options[key] = registry.read_value(value)
    if args.format is not None:
        options["format"] = args.format
    if args.preallocate:
        options["preallocate"] = True
    return options


def _say(args: Namespace, text: str, document: Document) -> int:
    if args.json:
        write_document(document)
    else:
        write(text)
    return failures.OK


def _say_extend(args: Namespace, volume: Volume, extend: Extend) -> int:
    go_on = f"; carry it on with: voldrivers resume {volume.name}" if extend.phase.under_way else ""
    return _say(args, f"{volume.title}: {texts.extend(extend)}{go_on}", documents.extend(volume, extend))
