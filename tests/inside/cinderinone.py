"""Cinder's API, scheduler and volume services in one process, as each of cinder.cmd starts its own.

Runs in Cinder's environment: `python cinderinone.py --config-file cinder.conf`. Says `ready` once it answers.
"""

from cinder import monkey_patch

monkey_patch.patch()

import os  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import os_brick  # noqa: E402
from cinder import coordination, objects, rpc, service, utils, version  # noqa: E402
from cinder.common import config  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_log import log as logging  # noqa: E402
from oslo_privsep import priv_context  # noqa: E402


def main() -> None:
    objects.register_all()
    cfg.CONF(sys.argv[1:], project="cinder", version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(cfg.CONF, "cinder")
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    os_brick.setup(cfg.CONF)
    coordination.COORDINATOR.start()
    rpc.init(cfg.CONF)
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
    services.append(service.WSGIService("osapi_volume"))
    for each in services:
        each.start()
    print("ready", flush=True)
    parent = os.getppid()
    # Ends with the test that started it, however that ends.
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


main()
