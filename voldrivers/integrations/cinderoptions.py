"""What a section of cinder.conf says of one backend of ours, and what is offered then."""

from pathlib import Path

from oslo_config import cfg

from voldrivers.conformance.reports.evidence import Proof
from voldrivers.conformance.reports.recorded import read
from voldrivers.errors import InvalidInput
from voldrivers.integrations.duties import Described

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
        "sudo,-n,/usr/bin/python3,-m,voldrivers.integrations.worker",
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

    Raises InvalidInput for what is no report, or one of another driver.
    """
    declared = frozenset(described.capabilities)
    if not report:
        return declared
    recorded = read(Path(report))
    if recorded.driver != described.driver:
        raise InvalidInput(f"report {report}", f"is of {recorded.driver}; the backend is {described.driver}")
    found = recorded.capabilities
    return frozenset(name for name in declared if name in found and found[name].proof is Proof.CONFIRMED)
