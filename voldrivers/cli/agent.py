"""`voldrivers agent`: the host of this machine, for controllers on others."""

import logging
from argparse import Namespace

from voldrivers import registry
from voldrivers.api import agent, server, wire
from voldrivers.cli import failures
from voldrivers.cli.output import write_lines
from voldrivers.cli.session import config_path
from voldrivers.errors import InvalidInput
from voldrivers.process import run


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
    if not args.verbose:
        logging.getLogger("voldrivers").addHandler(logging.StreamHandler())  # what was refused, and why
    with server.listen(*where) as listening:
        scheme = "https" if options.certificate else "http"
        port = listening.getsockname()[1]  # 0 in the file is any that is free
        try:
            place = options.listen.rpartition(":")[0]
            write_lines([f"host {host.name} answers at {scheme}://{place}:{port}"])
            server.serve(app, listening, options.certificate, options.key)
        except KeyboardInterrupt:  # the wish, not a failure: what was under way has ended
            return failures.OK
    return failures.OK
