"""What a configuration file holds once it was read and found right: see `registry`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from voldrivers.options import option


@dataclass(frozen=True)
class Policy:
    """The table `[policy]`: what the operator allows."""

    extend_attached: bool = option("whether a volume may be extended while it is attached", True)
    # As glance_store's cinder_do_extend_attached, which is off as well.
    image_extend_attached: bool = option(
        "whether `image write` extends a volume that is full where it is attached, not detached meanwhile",
        False,
    )
    deadline_s: float = option(
        "seconds that an extend may take; requests to hosts expire then",
        300.0,
        minimum=0.01,
        maximum=30 * 24 * 3600,
    )


@dataclass(frozen=True)
class TopLevel:
    """The keys that stand in no table."""

    state_dir: Path = option("directory of voldrivers' own records, on a local disk")


@dataclass(frozen=True)
class ServiceOptions:
    """The table `[service]`: how clients reach the volume service."""

    listen: str = option("where to answer, ADDRESS:PORT", "127.0.0.1:8776")
    certificate: Path | None = option("certificate for TLS, PEM; needed for all but loopback", None)
    key: Path | None = option("the certificate's key, PEM, if it is not in the same file", None)
    client_ca_file: Path | None = option("certificates that vouch for clients: then each needs one", None)
    policy_file: Path | None = option("who may do what, if not as `serve --print-policy` says", None)
    requests_per_second: float = option(
        "requests that one caller may send in a second", 500.0, minimum=0.1, maximum=1e6
    )


@dataclass(frozen=True)
class CallerOptions:
    """A table `[caller.NAME]`: somebody who may use the volume service."""

    token_file: Path = option("file with the caller's token, readable by its owner only")
    role: str = option("what it may do", choices=("admin", "member", "reader"))
    project: str = option("the only project that it reaches; none is every one", "")


@dataclass(frozen=True)
class AgentOptions:
    """The table `[agent]`: how a controller on another machine reaches the host of this one."""

    listen: str = option("where to answer, ADDRESS:PORT")
    token_file: Path = option("file with the token that controllers need, readable by its owner only")
    certificate: Path | None = option(
        "certificate for TLS, PEM; needed for all but loopback",
        None,
    )
    key: Path | None = option("the certificate's key, PEM, if it is not in the same file", None)
    client_ca_file: Path | None = option("certificates that vouch for controllers: then each needs one", None)
    requests_per_second: float = option(
        "requests that all controllers together may send in a second", 500.0, minimum=0.1, maximum=1e6
    )
    conformance: str = option(
        "whether who has the token may read and write volumes here, for the conformance suite; guest: through"
        " a QEMU without a CPU in qmp_dir, too. Not for a machine with volumes of value",
        "off",
        choices=("off", "host", "guest"),
    )


@dataclass(frozen=True)
class VolumeServiceOptions:
    """The table `[volume_service]` of an agent: who knows how volumes are attached to its instances."""

    url: str = option("where it answers, with a project: https://NAME:8776/v3/PROJECT")
    token_file: Path | None = option("file with our token, readable by its owner only", None)
    ca_file: Path | None = option("certificates that vouch for it, if not the system's", None)
    certificate: Path | None = option("certificate that we show it, PEM, if it asks for one", None)
    key: Path | None = option("the certificate's key, PEM, if it is not in the same file", None)
    timeout_s: float = option("seconds to wait for an answer", 30.0, minimum=0.1, maximum=3600)


@dataclass(frozen=True)
class BackendEntry:
    """One table `[backend.NAME]`; `options` is an instance of the driver's `options_type`."""

    name: str
    driver: str
    options: object


@dataclass(frozen=True)
class HostEntry:
    """One table `[host.NAME]`; `options` is an instance of the host's `options_type`."""

    name: str
    kind: str
    options: object


@dataclass(frozen=True)
class Config:
    """A file that was read and found right."""

    path: Path
    state_dir: Path
    policy: Policy
    backends: Mapping[str, BackendEntry]
    hosts: Mapping[str, HostEntry]
    service: ServiceOptions | None = None
    callers: Mapping[str, CallerOptions] = field(default_factory=dict)


@dataclass(frozen=True)
class AgentConfig:
    """A file with the table `[agent]` that was read and found right: of a machine without backends."""

    path: Path
    agent: AgentOptions
    host: HostEntry
    volume_service: VolumeServiceOptions | None = None
