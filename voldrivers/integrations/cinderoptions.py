"""What a section of cinder.conf says of one backend of ours, and what is offered then."""

from pathlib import Path

from oslo_config import cfg
from oslo_log import log as logging

from voldrivers.conformance.reports.evidence import Proof
from voldrivers.conformance.reports.recorded import Recorded, read
from voldrivers.errors import InvalidInput
from voldrivers.integrations.answers import Described

LOG = logging.getLogger(__name__)
OPTIONS = [
    cfg.StrOpt(
        "voldrivers_config",
        default="/etc/voldrivers/voldrivers.toml",
        help="The TOML file of voldrivers: the backend with its driver, and the hosts with their agents.",
    ),
    cfg.StrOpt(
        "voldrivers_backend",
        help="The table [backend.NAME] of that file, if it is not called as volume_backend_name.",
    ),
    cfg.ListOpt(
        "voldrivers_worker",
        default=[],
        help="The program that does the work, if it needs other rights than Cinder has: "
        "sudo,-n,/usr/bin/python3,-I,-m,voldrivers.integrations.worker",
    ),
    cfg.StrOpt(
        "voldrivers_report",
        help="The report.json of a conformance run: what it has not verified is not offered.",
    ),
    cfg.StrOpt(
        "voldrivers_assist",
        default="block",
        choices=["block", "complete"],
        help="Who has the guests of an attached file see its new size: we, before Cinder is told (block), "
        "or Nova, which then reports it by os-extend_volume_completion (complete).",
    ),
]


def offered(described: Described, report: str | None) -> frozenset[str]:
    """Give the capabilities that are declared, and confirmed by a report where there is one.

    What is withheld for want of proof is logged. Raises InvalidInput for what is no report, or one of another
    driver; one of another version proves nothing.
    """
    declared = frozenset(described.capabilities)
    if not report:
        return declared
    recorded = read(Path(report))
    if recorded.driver != described.driver:
        raise InvalidInput(f"report {report}", f"is of {recorded.driver}; the backend is {described.driver}")
    withheld = {name: reason for name in declared if (reason := _open(recorded, described, name))}
    for name, reason in sorted(withheld.items()):
        LOG.warning("%s is not offered, for report %s does not confirm it: %s", name, report, reason)
    return declared - withheld.keys()


def _open(recorded: Recorded, described: Described, name: str) -> str:
    """Say why a report does not confirm a capability; nothing where it does."""
    if recorded.package != described.package:
        return f"it is of {recorded.package}, and {described.package} is installed"
    if name not in recorded.capabilities:
        return "it does not know it"
    found = recorded.capabilities[name]
    if found.proof is Proof.CONFIRMED:
        return ""
    return f"it is {found.proof}, {', '.join(recorded.open(found)) or 'no check ran'}"
