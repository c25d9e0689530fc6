"""The two interfaces: `Driver` is one backend, `Host` one machine where volumes are attached.

Small interfaces beside `Driver` carry further abilities: see `voldrivers.abilities`. Every method may be
called again with the same arguments, after a crash too: look first, then act.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from voldrivers.abilities import INTERFACES
from voldrivers.capabilities import Capabilities
from voldrivers.errors import InvalidSize, NotSupported
from voldrivers.model import (
    Attachment,
    ConnectionInfo,
    Connector,
    Extend,
    ExtendReply,
    InstanceState,
    Ledger,
    LedgerRow,
    Pool,
    Volume,
)
from voldrivers.options import NoOptions
from voldrivers.sizes import SizeRule, format_size

Ability = TypeVar("Ability")


@dataclass(frozen=True)
class Completed:
    """What a program printed."""

    stdout: str
    stderr: str


class Run(Protocol):
    """Run a program to its end: see `voldrivers.process.run`."""

    def __call__(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run it."""


class Driver(ABC):
    """One backend. Subclass it, declare what it can do, and run the conformance suite.

    A driver gets what it uses in the constructor and opens nothing on import. It keeps no state:
    what it must remember of a volume it returns from `create_volume` as `provider_data` and gets
    back in every `Volume`. It never computes a difference from `volume.size_bytes`.
    """

    capabilities: ClassVar[Capabilities]
    #: Dataclasses made of `voldrivers.options.option` fields: of the backend, of one new volume.
    options_type: ClassVar[type] = NoOptions
    volume_options_type: ClassVar[type] = NoOptions
    size_rule: SizeRule = SizeRule()

    def __init__(self, name: str, options: Any, run: Run) -> None:  # Any: an instance of options_type
        """Take the backend's name, its options and the way to run programs."""
        self.name, self.options, self.run = name, options, run

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Refuse a class that declares a capability without the interface it needs (TypeError)."""
        super().__init_subclass__(**kwargs)
        declared = getattr(cls, "capabilities", None)
        for capability, value, interface in INTERFACES:
            if getattr(declared, capability, None) == value and not issubclass(cls, interface):
                needs = f"{capability}={value!s} but is no {interface.__name__}"
                raise TypeError(f"{cls.__name__} declares {needs}")

    @abstractmethod
    def create_volume(self, volume: Volume, options: Any) -> str:  # Any: an instance of volume_options_type
        """Make an empty volume of exactly `volume.size_bytes` that reads as zeros; return its provider_data.

        A volume that is there already is left alone. Nothing is left behind on failure.
        Raises NoSpace, InvalidInput, NotSupported, BackendError, OutcomeUnknown.
        """

    @abstractmethod
    def delete_volume(self, volume: Volume) -> None:
        """Remove the volume and every byte of it; one that is gone already is no error.

        Raises InvalidState while something holds it, BackendError, OutcomeUnknown.
        """

    @abstractmethod
    def list_volumes(self) -> Sequence[str]:
        """Give the ids of the volumes on the backend that are ours; foreign objects are left out."""

    @abstractmethod
    def volume_size(self, volume: Volume) -> int:
        """Give the size in bytes that the backend really has, looked up now.

        Raises NotFound when the volume is gone, InvalidState or BackendError when it cannot be read.
        """

    @abstractmethod
    def pool(self) -> Pool:
        """Give the room on the backend, looked up now."""

    @abstractmethod
    def extend_volume(self, volume: Volume, new_size_bytes: int) -> ExtendReply:
        """Make the volume at least `new_size_bytes` large, or leave it to the hypervisor.

        DEFERRED means: nothing was done, the hypervisor that holds the volume must grow it. The
        attachments in `volume` carry the state of their instances. After the hypervisor has
        grown it this is called again and must answer EXTENDED, having done what is left to do
        (allocation, say). One already large enough is left alone; never makes a volume smaller.
        Raises NoSpace, InvalidState, BackendError, OutcomeUnknown.
        """

    @abstractmethod
    def initialize_connection(self, volume: Volume, connector: Connector) -> ConnectionInfo:
        """Let `connector` reach the volume and say how."""

    @abstractmethod
    def terminate_connection(self, volume: Volume, connector: Connector) -> None:
        """Take back what `initialize_connection` gave; nothing given is no error."""

    def check_configuration(self) -> None:  # noqa: B027 - most have nothing more to look at
        """Refuse options that cannot work on this machine: a file that is missing, say. Only reads files.

        For `config check`. Raises InvalidInput.
        """

    def check_extend(self, volume: Volume, new_size_bytes: int) -> None:  # noqa: B027 - nothing to refuse
        """Refuse at admission, before anything is touched, what could not be done.

        Raises NoSpace, NotSupported (a declared condition), InvalidState. Changes nothing.
        """

    def extend_notes(
        self,
        volume: Volume,  # noqa: ARG002 - for those who have something to tell
        new_size_bytes: int,  # noqa: ARG002 - as above
    ) -> Sequence[str]:
        """Tell what an operator should know of an extend that `check_extend` has let pass: its cost, say."""
        return ()

    def ledger_rows(self, volume: Volume, expected_bytes: int) -> Ledger:
        """Give the backend's own layers of the size ledger; a layer that cannot be read raises."""
        return (LedgerRow("backend", self.name, self.volume_size(volume), expected_bytes),)


class Host(ABC):
    """One machine where volumes are attached: its kernel and its hypervisors.

    Every call answers within a time limit. An instance is one QEMU; a host that cannot reach its
    monitor says so (InvalidState before anything was sent, OutcomeUnknown after).
    """

    #: Protocol level of this host; one that is too old is refused at admission.
    version: int = 1
    #: Whether `assist_extend` only takes the wish: then who asked looks at `ledger_rows` until it came true.
    assists_later: bool = False
    options_type: ClassVar[type] = NoOptions

    def __init__(self, name: str, options: Any, run: Run) -> None:  # Any: an instance of options_type
        """Take the host's name, its options and the way to run programs."""
        self.name, self.options, self.run = name, options, run

    def check_configuration(self) -> None:  # noqa: B027 - as that of `Driver`
        """Refuse options that cannot work on this machine, as `Driver.check_configuration`."""

    @abstractmethod
    def connector(self) -> Connector:
        """Say what a driver must know of this host."""

    @abstractmethod
    def find_instance(self, attachment: Attachment) -> Attachment:
        """Fill in `instance`, `monitor` and `instance_process` of an attachment that is to be plugged.

        One without instance and monitor comes back as it is. Raises NotFound, InvalidState.
        """

    @abstractmethod
    def connect(self, volume: Volume, attachment: Attachment, connection_info: ConnectionInfo) -> str:
        """Make the volume appear on this host; return the path of its device or file."""

    @abstractmethod
    def disconnect(self, volume: Volume, attachment: Attachment) -> None:
        """Take the volume off this host, where nothing else has it; one that is not there is no error."""

    @abstractmethod
    def plug(self, volume: Volume, attachment: Attachment) -> None:
        """Hot-plug the connected volume into the attachment's instance; no instance is no error."""

    @abstractmethod
    def unplug(self, volume: Volume, attachment: Attachment) -> None:
        """Take the device out of the instance, proved gone included; nothing to unplug is no error.

        Raises InvalidState when the guest keeps it or the instance cannot be reached.
        """

    @abstractmethod
    def ledger_rows(self, volume: Volume, attachment: Attachment, expected_bytes: int) -> Ledger:
        """Give this host's layers: paths, maps, the QEMU node (required while it runs), the guest."""

    @abstractmethod
    def instance_state(self, attachment: Attachment) -> InstanceState:
        """Tell whether the instance runs. STOPPED only with proof; a vanished monitor is UNKNOWN."""

    @abstractmethod
    def hold(self, attachment: Attachment) -> AbstractContextManager[None]:
        """Keep the attachment's instance from being started while the context is open.

        Raises InvalidState when it is being started or held by somebody else.
        """

    @abstractmethod
    def check_extend(self, volume: Volume, attachment: Attachment) -> None:
        """Refuse at admission what this host could not do. Changes nothing.

        Raises InvalidState (unreachable, QEMU not in a state to resize, a block job in the way),
        NotSupported (no monitor).
        """

    @abstractmethod
    def rescan(self, volume: Volume, attachment: Attachment) -> None:
        """Let the kernel read the volume's new size. May return before it is visible."""

    @abstractmethod
    def get_blockdev(self, volume: Volume, attachment: Attachment) -> int:
        """Give the size in bytes that this host's kernel really sees, looked up now."""

    @abstractmethod
    def assist_extend(self, volume: Volume, attachment: Attachment, extend: Extend) -> None:
        """Let QEMU show `extend.to_bytes` to the guest, growing a file if it holds one; look after it.

        Never makes anything smaller. An expired or older extend is refused right before the act.
        Raises InvalidState with nothing sent, BackendError, OutcomeUnknown.
        """

    @abstractmethod
    def cancel(self, extend: Extend, attachment: Attachment) -> None:
        """Return only when `extend` can no longer take effect here: answered, dropped, or QEMU gone.

        The fence before a roll-back. Raises OutcomeUnknown when that cannot be said.
        """


def able(driver: Driver, interface: type[Ability], subject: str) -> Ability:
    """Give a driver as the interface of a capability that it declares. Raises NotSupported with `subject`."""
    capability = next(name for name, _, needed in INTERFACES if needed is interface)
    if not driver.capabilities.declares(capability) or not isinstance(driver, interface):
        raise NotSupported(subject, f"backend {driver.name} does not declare the capability {capability}")
    return driver


def round_size(driver: Driver, subject: str, requested_bytes: int, current_bytes: int | None = None) -> int:
    """Round a request by the driver's rule, once. Raises InvalidSize with both sizes in it."""
    try:
        return driver.size_rule.round_up(requested_bytes)
    except ValueError as error:
        asked = format_size(requested_bytes) if isinstance(requested_bytes, int) else str(requested_bytes)
        raise InvalidSize(subject, str(error), asked, current_bytes) from error


Drivers = Mapping[str, Driver]
Hosts = Mapping[str, Host]
Sleep = Callable[[float], None]
