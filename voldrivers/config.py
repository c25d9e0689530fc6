"""What a configuration file holds once it was read and found right: see `registry`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voldrivers.options import option


@dataclass(frozen=True)
class Policy:
    """The table `[policy]`: what the operator allows."""

    extend_attached: bool = option("whether a volume may be extended while it is attached", True)
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
class AgentOptions:
    """The table `[agent]`: how a controller on another machine reaches the host of this one."""

    listen: str = option("where to answer, ADDRESS:PORT")
    token_file: Path = option("file with the token that controllers need, readable by its owner only")
    certificate: Path | None = option(
        "certificate for TLS, PEM; without one token and secrets cross the network for all to read",
        None,
    )
    key: Path | None = option("the certificate's key, PEM, if it is not in the same file", None)


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


@dataclass(frozen=True)
class AgentConfig:
    """A file with the table `[agent]` that was read and found right: of a machine without backends."""

    path: Path
    agent: AgentOptions
    host: HostEntry
