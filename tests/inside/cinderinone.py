"""Cinder's API, scheduler and volume services in one process, as each of cinder.cmd starts its own.

Runs in Cinder's environment: `python cinderinone.py --config-file cinder.conf`. Says `ready` once it answers.
With OS_CINDER_DISABLE_EVENTLET_PATCHING=1 all of it is on native threads. The API, which Cinder then leaves
to a web server, is run by one of the standard library; and SQLite, which gives up where two transactions
begin to write, has one begin after the other.
"""

from cinder import monkey_patch

monkey_patch.patch()

import os  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from socketserver import ThreadingMixIn  # noqa: E402
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server  # noqa: E402

import os_brick  # noqa: E402
from cinder import coordination, objects, rpc, service, utils, version  # noqa: E402
from cinder.common import config  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_log import log as logging  # noqa: E402
from oslo_privsep import priv_context  # noqa: E402
from oslo_service import wsgi  # noqa: E402
from sqlalchemy import event  # noqa: E402
from sqlalchemy.engine import Engine  # noqa: E402


class Threads(ThreadingMixIn, WSGIServer):
    """Answers each connection in a thread."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    """Keeps the requests out of the log, where Cinder writes them itself."""

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


def begin_in_turn(_c: object, _d: object, statement: str, parameters: object, *_more: object) -> object:
    return "BEGIN IMMEDIATE" if statement == "BEGIN" else statement, parameters


def serve_in_threads() -> None:
    app = wsgi.Loader(cfg.CONF).load_app(name="osapi_volume")
    at = cfg.CONF.osapi_volume_listen, cfg.CONF.osapi_volume_listen_port
    server = make_server(*at, app, Threads, Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    objects.register_all()
    cfg.CONF.import_opt("backup_driver", "cinder.backup.manager")
    cfg.CONF(sys.argv[1:], project="cinder", version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(cfg.CONF, "cinder")
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    os_brick.setup(cfg.CONF)
    coordination.COORDINATOR.start()
    rpc.init(cfg.CONF)
    if not monkey_patch.is_patched():
        event.listen(Engine, "before_cursor_execute", begin_in_turn, retval=True)
    services = [service.Service.create(binary="cinder-scheduler")]
    services += [
        service.Service.create(
            host=f"{cfg.CONF.host}@{backend}",
            service_name=backend,
            binary="cinder-volume",
            coordination=True,
        )
        for backend in cfg.CONF.enabled_backends
    ]
    if cfg.CONF.backup_driver.endswith("PosixBackupDriver"):
        services.append(
            service.Service.create(binary="cinder-backup", service_name="backup", coordination=True)
        )
    if monkey_patch.is_patched():
        services.append(service.WSGIService("osapi_volume"))
    for each in services:
        each.start()
    if not monkey_patch.is_patched():
        serve_in_threads()
    print("ready", flush=True)
    parent = os.getppid()
    # Ends with the test that started it, however that ends.
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


main()
