"""`voldrivers serve` and `voldrivers agent`: the services, until SIGTERM or Ctrl-C comes."""

import logging
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from voldrivers import registry
from voldrivers.api import server, tracing, wire
from voldrivers.api.access import Caller, Door
from voldrivers.api.guard import App
from voldrivers.base import Host
from voldrivers.cli import failures
from voldrivers.cli.output import write_lines
from voldrivers.cli.session import config_path
from voldrivers.config import AgentConfig, AgentOptions, Config, ServiceOptions
from voldrivers.errors import InvalidInput, VolDriverError
from voldrivers.host.local import LocalOptions
from voldrivers.process import run

if TYPE_CHECKING:
    from voldrivers.api.placeagent import PlaceAgent


def serve_volumes(args: Namespace) -> int:
    """`serve`: answer clients of the Block Storage API."""
    from voldrivers.api.policy import Policy, sample  # an agent has nothing of these, and starts sooner
    from voldrivers.api.volume.app import make_app

    if args.print_policy:
        write_lines(sample())
        return failures.OK
    config = registry.load(config_path(args))
    if config.service is None:
        raise InvalidInput(f"{config.path}: [service]", "must be there, though it may be empty")
    door = _door(config)
    app = make_app(config, door, Policy(config.service.policy_file))
    return _serve(args, app, config.service, "[service]", "volume service", has_tokens=bool(config.callers))


def serve_host(args: Namespace) -> int:
    """`agent`: answer the controllers of this machine's host."""
    from voldrivers.api import agentapp
    from voldrivers.api.client import VolumeService

    config = registry.load_agent(config_path(args))
    host = registry.make_host(config.host, run)
    service = None if config.volume_service is None else VolumeService(config.volume_service)
    token, per_second = wire.read_token(config.agent.token_file), config.agent.requests_per_second
    with ExitStack() as ending:
        place = _place(config, host)
        if place is not None:
            ending.callback(place.close)
        app = agentapp.make_app(host, token, service, per_second, place)
        return _serve(args, app, config.agent, "[agent]", f"host {host.name}", has_tokens=True)


def _place(config: AgentConfig, host: Host) -> "PlaceAgent | None":
    """Let the conformance suite look at this machine, if the operator does."""
    if config.agent.conformance == "off":
        return None
    from voldrivers.api.placeagent import PlaceAgent  # an agent in production has none of the suite
    from voldrivers.api.placebook import Book

    guests = config.host.options.qmp_dir if isinstance(config.host.options, LocalOptions) else None
    return PlaceAgent(host, Book(host), guests if config.agent.conformance == "guest" else None)


def check(config: Config | AgentConfig) -> Iterator[VolDriverError]:
    """Give what is wrong with the files that a service's configuration names, for `config check`."""
    from voldrivers.api.policy import Policy

    looks: list[Callable[[], object]] = []
    if isinstance(config, AgentConfig):
        options: AgentOptions | ServiceOptions = config.agent
        looks = [lambda: wire.read_token(config.agent.token_file)]
    elif config.service is None:
        return
    else:
        options, service = config.service, config.service
        looks = [partial(wire.read_token, each.token_file) for each in config.callers.values()]
        looks += [lambda: _door(config), lambda: Policy(service.policy_file)]
    is_agent = isinstance(config, AgentConfig)
    table = f"{config.path}: {'[agent]' if is_agent else '[service]'}"
    has_tokens = isinstance(config, AgentConfig) or bool(config.callers)
    looks.append(lambda: server.make_server(_nothing, _identity(options)))
    looks.append(lambda: _where(options, table, has_tokens=has_tokens))
    told: set[str] = set()
    for look in looks:
        try:
            look()
        except VolDriverError as error:
            if str(error) not in told:
                told.add(str(error))
                yield error


def _serve(
    args: Namespace,
    app: App,
    options: AgentOptions | ServiceOptions,
    table: str,
    title: str,
    *,
    has_tokens: bool,
) -> int:
    where = _where(options, f"{config_path(args).absolute()}: {table}", has_tokens=has_tokens)
    made = server.make_server(app, _identity(options))
    _log_to_stderr()
    with server.listen(*where) as listening:
        scheme = "https" if options.certificate else "http"
        port = listening.getsockname()[1]  # 0 in the file is any that is free
        try:
            place = options.listen.rpartition(":")[0]
            write_lines([f"{title} answers at {scheme}://{place}:{port}"])
            server.serve(made, listening)
        except KeyboardInterrupt:  # the wish, not a failure: what was under way has ended
            return failures.OK
    return failures.OK


def _where(options: AgentOptions | ServiceOptions, where: str, *, has_tokens: bool) -> tuple[str, int]:
    try:
        address, port = server.parse_address(options.listen)
    except ValueError as error:
        raise InvalidInput(f"{where} listen", str(error)) from error
    server.check_exposed(address, _identity(options), has_tokens=has_tokens)
    return address, port


def _identity(options: AgentOptions | ServiceOptions) -> server.Identity:
    return server.Identity(options.certificate, options.key, options.client_ca_file)


def _door(config: Config) -> Door:
    """Let in who has a token; without any, everybody on this machine."""
    tokens = [
        (wire.read_token(each.token_file), Caller(name, each.role, each.project))
        for name, each in config.callers.items()
    ]
    if len({token for token, _ in tokens}) < len(tokens):
        raise InvalidInput(f"{config.path}: [caller]", "two callers have the same token")
    return Door(tokens, is_open=not tokens)


def _log_to_stderr() -> None:
    """Write one JSON object a line: what was refused, with -v what was done, with -vv every program run."""
    handler = logging.StreamHandler()
    handler.setFormatter(tracing.JSONLines())
    logging.getLogger().handlers = [handler]  # of the libraries, too
    logging.getLogger("voldrivers").handlers = []


async def _nothing(_scope: object, _receive: object, _send: object) -> None:
    """Stand in for an application, to see whether a server can be made."""
