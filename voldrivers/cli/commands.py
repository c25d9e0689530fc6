"""The commands: each reads its arguments, asks the engine, prints, and gives its exit code."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from voldrivers import registry
from voldrivers.cli import documents, failures, texts
from voldrivers.cli.output import Document, complain, table, write_document, write_lines
from voldrivers.cli.session import advise, config_path, working
from voldrivers.config import AgentConfig
from voldrivers.errors import InvalidInput, InvalidSize, VolDriverError
from voldrivers.extend.admission import Plan
from voldrivers.extend.database import check_directory
from voldrivers.model import Extend, Volume
from voldrivers.sizes import format_size, parse_size


def create(args: Namespace) -> int:
    """`volume create`."""
    is_copy = args.from_volume is not None or args.from_snapshot is not None
    size_bytes = None if args.size is None else _size(args)
    with working(args) as engine:
        options = _options(args)
        volume = (
            engine.create_volume(
                args.volume, size_bytes, args.backend, options, multi_attach=args.multi_attach
            )
            if size_bytes is not None and not is_copy
            else engine.clone_volume(
                args.volume,
                args.from_volume,
                args.from_snapshot,
                size_bytes,
                options,
                multi_attach=args.multi_attach,
            )
        )
    return _say_made(args, volume)


def manage(args: Namespace) -> int:
    """`volume manage`."""
    with working(args) as engine:
        volume = engine.manage_volume(
            args.volume, args.reference, args.backend, _options(args), multi_attach=args.multi_attach
        )
    return _say_made(args, volume)


def unmanage(args: Namespace) -> int:
    """`volume unmanage`."""
    with working(args) as engine:
        backend = engine.volume(args.volume).backend
        reference = engine.unmanage_volume(args.volume)
    text = f"volume {args.volume}: no longer managed; it is {reference} on backend {backend}"
    return _say(args, [text], {"volume": args.volume, "backend": backend, "reference": reference})


def list_volumes(args: Namespace) -> int:
    """`volume list`."""
    with working(args) as engine:
        volumes = engine.volumes()
    rows = [
        (v.name, format_size(v.size_bytes), v.status, v.backend, ", ".join(a.place for a in v.attachments))
        for v in volumes
    ]
    lines = table(("NAME", "SIZE", "STATUS", "BACKEND", "ATTACHED TO"), rows) if rows else ["no volumes"]
    return _say(args, lines, [documents.volume(v) for v in volumes])


def show(args: Namespace) -> int:
    """`volume show`."""
    with working(args) as engine:
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
        *(("snapshot", texts.snapshot(each)) for each in volume.snapshots),
    ]
    if extend:
        lines.append(("last extend", texts.extend(extend)))
    lines += [("message", f"{m.at:%Y-%m-%d %H:%M:%S} {m.text}") for m in messages]
    return _say(args, table(lines[0], lines[1:]), document)


def delete(args: Namespace) -> int:
    """`volume delete`."""
    with working(args) as engine:
        engine.delete_volume(args.volume)
    return _say(args, [f"volume {args.volume}: deleted"], {"volume": args.volume, "deleted": True})


def create_snapshot(args: Namespace) -> int:
    """`snapshot create`."""
    with working(args) as engine:
        snapshot = engine.create_snapshot(args.volume, args.snapshot)
        volume = engine.volume(args.volume)
    text = f"{snapshot.title}: {volume.title} as it is now, {format_size(snapshot.size_bytes)}"
    return _say(args, [text], documents.snapshot(volume, snapshot))


def list_snapshots(args: Namespace) -> int:
    """`snapshot list`."""
    with working(args) as engine:
        volumes = engine.volumes() if args.volume is None else (engine.volume(args.volume),)
    found = [(volume, snapshot) for volume in volumes for snapshot in volume.snapshots]
    rows = [(s.name, v.name, format_size(s.size_bytes), s.status) for v, s in found]
    lines = table(("NAME", "VOLUME", "SIZE", "STATUS"), rows) if rows else ["no snapshots"]
    return _say(args, lines, [documents.snapshot(volume, snapshot) for volume, snapshot in found])


def delete_snapshot(args: Namespace) -> int:
    """`snapshot delete`."""
    with working(args) as engine:
        args.volume = engine.snapshot(args.snapshot).volume_id
        engine.delete_snapshot(args.snapshot)
    return _say(args, [f"snapshot {args.snapshot}: deleted"], {"snapshot": args.snapshot, "deleted": True})


def revert(args: Namespace) -> int:
    """`snapshot revert`."""
    with working(args) as engine:
        args.volume = engine.snapshot(args.snapshot).volume_id
        volume = engine.revert_to_snapshot(args.snapshot)
    text = f"{volume.title}: again as snapshot {args.snapshot}, {format_size(volume.size_bytes)}"
    return _say(args, [text], documents.volume(volume))


def attach(args: Namespace) -> int:
    """`attach`."""
    with working(args) as engine:
        monitor = Path(args.qmp).absolute() if args.qmp else None
        attachment = engine.attach(args.volume, args.host, args.instance or None, monitor)
    text = f"volume {args.volume}: attached to {attachment.place} as {attachment.device_path}"
    return _say(args, [text], documents.attachment(attachment))


def detach(args: Namespace) -> int:
    """`detach`."""
    with working(args) as engine:
        engine.detach(args.volume, args.host, args.instance, force=args.force)
        volume = engine.volume(args.volume)
    return _say(args, [f"{volume.title}: detached, {volume.status}"], documents.volume(volume))


def extend(args: Namespace) -> int:
    """`extend`."""
    with working(args) as engine:
        volume = engine.volume(args.volume)
        size_bytes = _size(args, volume.size_bytes)
        done = (
            engine.plan(args.volume, size_bytes)
            if args.plan
            else engine.extend(args.volume, size_bytes, wait=not args.no_wait)
        )
    return _say_plan(args, done) if isinstance(done, Plan) else _say_extend(args, volume, done)


def retry(args: Namespace) -> int:
    """`retry`."""
    with working(args) as engine:
        volume, done = engine.volume(args.volume), engine.retry(args.volume)
    return _say_extend(args, volume, done)


def cancel(args: Namespace) -> int:
    """`cancel`."""
    with working(args) as engine:
        volume = engine.volume(args.volume)
        asked = engine.cancel(args.volume)
    text = (
        f"{volume.title}: asked to roll its extend back, if nothing has grown yet;"
        f" if no process works on it: voldrivers resume {volume.name}"
    )
    return _say(args, [text], documents.extend(volume, asked))


def resume(args: Namespace) -> int:
    """`resume`: everything is tried, the first failure gives the exit code."""
    with working(args) as engine:
        resumed = engine.resume(args.volume)
        for each in resumed:
            if each.error:
                advise(each.error, engine, Namespace(command=args.command, volume=each.volume.id))
    lines = [f"{r.volume.title}: was {r.what}, now {r.outcome}" for r in resumed]
    _say(args, lines or ["nothing to resume"], [documents.resumed(r) for r in resumed])
    errors = [(r.error, r.volume.name) for r in resumed if r.error]
    for error, name in errors:
        complain(failures.sentence(error, name))
    return failures.exit_code(errors[0][0]) if errors else failures.OK


def doctor(args: Namespace) -> int:
    """`doctor`."""
    with working(args) as engine:
        ledger = engine.repair(args.volume) if args.repair else engine.ledger(args.volume)
        volume = engine.volume(args.volume)
        stopped = engine.stopped(volume)
    settled = texts.is_steady(volume) and not any(row.stale for row in ledger)
    document = documents.ledger(volume, ledger, stopped, settled=settled)
    _say(args, texts.ledger(volume, ledger, stopped), document)
    return failures.OK if settled else failures.STALE


def check_config(args: Namespace) -> int:
    """`config check`."""
    checked = _with_files_checked(registry.check(config_path(args)))
    rows = [
        (s.table or "-", s.help.name, s.value or "", s.help.kind, s.help.default, s.help.meaning)
        for s in checked.settings
    ]
    lines = table(("TABLE", "KEY", "VALUE", "TYPE", "DEFAULT", "MEANING"), rows)
    verdict = f"wrong: {len(checked.problems)}" if checked.problems else "nothing is wrong"
    _say(args, [str(checked.path), "", *lines, "", verdict], documents.checked(checked))
    for problem in checked.problems:
        complain(str(problem))
    return failures.exit_code(checked.problems[0]) if checked.problems else failures.OK


COMMANDS: Mapping[str, Callable[[Namespace], int]] = {
    "create": create,
    "list": list_volumes,
    "show": show,
    "delete": delete,
    "manage": manage,
    "unmanage": unmanage,
    "create_snapshot": create_snapshot,
    "list_snapshots": list_snapshots,
    "delete_snapshot": delete_snapshot,
    "revert": revert,
    "attach": attach,
    "detach": detach,
    "extend": extend,
    "retry": retry,
    "cancel": cancel,
    "resume": resume,
    "doctor": doctor,
    "check_config": check_config,
}


def _with_files_checked(checked: registry.Checked) -> registry.Checked:
    if isinstance(checked.config, AgentConfig) or (checked.config and checked.config.service):
        from voldrivers.cli import serving

        checked = replace(checked, problems=(*checked.problems, *serving.check(checked.config)))
    try:
        if checked.state_dir is not None:
            check_directory(checked.state_dir)
    except VolDriverError as error:
        problem = InvalidInput(f"{checked.path}: state_dir", str(error))
        return replace(checked, problems=(*checked.problems, problem))
    return checked


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


def _say(args: Namespace, lines: Sequence[str], document: Document) -> int:
    if args.json:
        write_document(document)
    else:
        write_lines(lines)
    return failures.OK


def _say_made(args: Namespace, volume: Volume) -> int:
    text = f"{volume.title}: {format_size(volume.size_bytes)} on backend {volume.backend}"
    return _say(args, [text], documents.volume(volume))


def _say_plan(args: Namespace, plan: Plan) -> int:
    change = f"from {format_size(plan.from_bytes)} to {format_size(plan.to_bytes)}"
    first = f"{plan.volume.title}: {change}, grown by {plan.grown_by}"
    lines = [first, *(f"  {step}" for step in plan.steps), *(f"  note: {note}" for note in plan.notes)]
    return _say(args, lines, documents.plan(plan))


def _say_extend(args: Namespace, volume: Volume, extend: Extend) -> int:
    go_on = f"; carry it on with: voldrivers resume {volume.name}" if extend.phase.under_way else ""
    text = f"{volume.title}: {texts.extend(extend)}{go_on}"
    return _say(args, [text], documents.extend(volume, extend))
