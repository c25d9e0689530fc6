"""`voldrivers agent`: the host of this machine, for controllers on others."""

import logging
from argparse import Namespace
from collections.abc import Iterator

from fastapi import FastAPI

from voldrivers import registry
from voldrivers.api import agent, server, wire
from voldrivers.cli import failures
from voldrivers.cli.output import write_lines
from voldrivers.cli.session import config_path
from voldrivers.config import AgentConfig
from voldrivers.errors import InvalidInput, VolDriverError
from voldrivers.process import run


def check(config: AgentConfig) -> Iterator[VolDriverError]:
    """Give what is wrong with the files that an agent's configuration names, for `config check`."""
    options = config.agent
    for look in (
        lambda: wire.read_token(options.token_file),
        lambda: server.make_server(FastAPI(), options.certificate, options.key),
        lambda: server.parse_address(options.listen),
    ):
        try:
            look()
        except VolDriverError as error:
            yield error
        except ValueError as error:
            yield InvalidInput(f"{config.path}: [agent] listen", str(error))


def serve(args: Namespace) -> int:
    """`agent`: answer until SIGTERM or Ctrl-C comes."""
    config = registry.load_agent(config_path(args))
    options = config.agent
    try:
        where = server.parse_address(options.listen)
    except ValueError as error:
        raise InvalidInput(f"{config.path}: [agent] listen", str(error)) from error
    host = registry.make_host(config.host, run)
    app = agent.make_app(host, wire.read_token(options.token_file))
    made = server.make_server(app, options.certificate, options.key)
    if not args.verbose:
        logging.getLogger("voldrivers").addHandler(logging.StreamHandler())  # what was refused, and why
    with server.listen(*where) as listening:
        scheme = "https" if options.certificate else "http"
        port = listening.getsockname()[1]  # 0 in the file is any that is free
        try:
            place = options.listen.rpartition(":")[0]
            write_lines([f"host {host.name} answers at {scheme}://{place}:{port}"])
            server.serve(made, listening)
        except KeyboardInterrupt:  # the wish, not a failure: what was under way has ended
            return failures.OK
    return failures.OK
