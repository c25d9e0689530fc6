"""An agent on a machine that sshd reaches, for the time of a run; nothing is left there.

The OpenSSH client starts a shell there and writes it a script, with the agent's token in it: so neither
machine shows it in a list of processes. The shell ends the agent when its input ends, however that comes
about. A second ssh has a socket here, which only we may use, lead to the port of the agent on its loopback.
"""

import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from voldrivers import process
from voldrivers.errors import (
    BackendError,
    CommandFailed,
    HostUnreachable,
    NotSupported,
    OutcomeUnknown,
    VolDriverError,
)
from voldrivers.process import Talk

#: An agent that was just started answers within that; Python on a busy machine is slow.
_START_S = 60.0
#: What a login and the shell itself may take besides.
_MORE_S = 10.0
#: What the shell there takes to end the agent, and some more.
_END_S = 20.0
_WORD = r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,254}"  # as it stands: ssh knows aliases by their case
_ADDRESS = re.compile(
    rf"ssh://((?P<user>{_WORD})@)?((?P<name>{_WORD})|\[(?P<number>[0-9A-Fa-f:.]+(%\w+)?)\])(:(?P<port>\d{{1,5}}))?/?"
)
#: `alive`: a child that has ended is there until it is waited for.
_SCRIPT = """
main() {
    command -v @PROGRAM@ >/dev/null || { echo "@MARK@ missing"; exit 1; }
    umask 077
    place=$(mktemp -d "${TMPDIR:-/tmp}/voldrivers-XXXXXXXXXX") || exit 1
    agent=
    alive() {
        { read -r stat <"/proc/$agent/stat"; } 2>/dev/null || return 1
        case $stat in *') Z '*) return 1 ;; esac
    }
    end() {
        trap '' HUP INT PIPE TERM
        if [ -n "$agent" ]; then
            kill -TERM "$agent" 2>/dev/null
            turns=0
            while alive && [ "$turns" -lt 50 ]; do sleep 0.2; turns=$((turns + 1)); done
            kill -KILL "$agent" 2>/dev/null
            wait "$agent" 2>/dev/null
        fi
        rm -rf "$place"
    }
    trap end EXIT
    trap 'exit 1' HUP INT PIPE TERM
    cat >"$place/token" <<'@MARK@'
@TOKEN@
@MARK@
    cat >"$place/agent.toml" <<'@MARK@'
[agent]
listen = "127.0.0.1:0"
token_file = "token"
conformance = "@KIND@"
[host."@NAME@"]
kind = "local"
qmp_dir = "."
@MARK@
    @PROGRAM@ agent --config "$place/agent.toml" </dev/null >"$place/said" 2>"$place/log" &
    agent=$!
    turns=0
    while ! grep -q ' answers at ' "$place/said"; do
        alive || { echo "@MARK@ failed $(tail -c 1000 "$place/log" | tr '\\n' ' ')"; exit 1; }
        [ "$turns" -lt @TURNS@ ] || { echo "@MARK@ failed it does not answer"; exit 1; }
        turns=$((turns + 1))
        sleep 0.1
    done
    echo "@MARK@ ready $(sed -n 's/.* answers at //p' "$place/said")"
    read -r _
    exit 0
}
main
"""


@dataclass(frozen=True)
class Login:
    """How a machine is reached by ssh."""

    machine: str
    user: str | None = None
    port: int | None = None
    program: str = "voldrivers"
    config: Path | None = None
    connect_timeout_s: float = 10.0

    @classmethod
    def of(cls, address: str) -> Self:
        """Read ssh://USER@NAME:PORT, of which the user and the port may be left out. Raises ValueError."""
        found = _ADDRESS.fullmatch(address)
        if found is None or int(found["port"] or 22) not in range(1, 2**16):
            raise ValueError(f"{address} must be ssh://USER@NAME:PORT")
        port = None if found["port"] is None else int(found["port"])
        return cls(found["name"] or found["number"], found["user"], port)

    @property
    def title(self) -> str:
        """How messages name it."""
        port = f":{self.port}" if self.port else ""
        return f"ssh://{f'{self.user}@' if self.user else ''}{self.machine}{port}"

    def command(self, *options: str) -> list[str]:
        """Give the command line of ssh, which asks nobody anything and shares no connection."""
        given = {
            "BatchMode": "yes",
            "ConnectTimeout": str(max(1, round(self.connect_timeout_s))),
            "ControlPath": "none",
            "ExitOnForwardFailure": "yes",
            "ForwardAgent": "no",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "ServerAliveCountMax": "3",
            "ServerAliveInterval": "10",
        }
        argv = ["ssh", *(["-F", str(self.config)] if self.config else [])]
        argv += [word for name, value in given.items() for word in ("-o", f"{name}={value}")]
        argv += [*(["-l", self.user] if self.user else []), *(["-p", str(self.port)] if self.port else [])]
        return [*argv, *options, "--", self.machine]


@dataclass(frozen=True)
class Reached:
    """An agent that answers: where it says it does, the socket that leads there, and its token."""

    url: str
    socket: Path
    token_file: Path


@contextmanager
def started(login: Login, name: str, directory: Path, *, guests: bool) -> Iterator[Reached]:
    """Have an agent on another machine for the host `name`; `directory` is ours alone, with a short path.

    Raises HostUnreachable with what ssh says; NotSupported where a program is missing, here or there;
    BackendError with what the agent says; OutcomeUnknown when one does not answer in time.
    """
    if shutil.which("ssh") is None:
        raise NotSupported(f"host {name}", "ssh is not installed here (Debian package openssh-client)")
    token, socket = secrets.token_hex(32), directory / "agent.sock"
    token_file = directory / "token"
    token_file.touch(0o600)
    token_file.write_text(token + "\n")
    mark = f"voldrivers-{secrets.token_hex(8)}"
    values = {
        "PROGRAM": shlex.quote(login.program),
        "MARK": mark,
        "TOKEN": token,
        "KIND": "guest" if guests else "host",
        "NAME": name,
        "TURNS": str(round(_START_S * 10)),
    }
    shell = [*login.command("-o", "ClearAllForwardings=yes"), "exec sh -s"]
    with process.talk(shell, log=directory / "shell.log", end_s=_END_S) as talk:
        talk.say(re.sub("@([A-Z]+)@", lambda match: values[match[1]], _SCRIPT))
        url = _ready(talk, login, name, mark)
        _, _, there = url.rpartition("/")
        # Not `-N`: with a command that ends with its input it ends when we are killed, too.
        way = [*login.command("-L", f"{socket}:{there}"), "exec cat"]
        with process.talk(way, log=directory / "way.log", end_s=5.0) as forward:
            _wait_for(socket, forward, login, name)
            yield Reached(url, socket, token_file)


def _ready(talk: Talk, login: Login, name: str, mark: str) -> str:
    """Wait until the agent there says where it answers; what a login prints is passed over."""
    until = time.monotonic() + login.connect_timeout_s + _START_S + _MORE_S
    while True:
        try:
            line = talk.hear(max(0.1, until - time.monotonic()))
        except CommandFailed as error:
            raise _failure(login, name, error) from error
        except OutcomeUnknown as error:
            state = f"silent ({error.reason})"
            raise HostUnreachable(
                f"host {name} at {login.title}", state, "one with a shell", host=name
            ) from error
        said, _, reason = line.removeprefix(f"{mark} ").partition(" ")
        if not line.startswith(f"{mark} "):
            continue
        if said == "ready" and re.fullmatch(r"http://127\.0\.0\.1:\d+", reason):
            return reason
        if said == "missing":
            wanted = f"there is no program {login.program}: install voldrivers[all], or name it by `program`"
            raise NotSupported(f"host {name} at {login.title}", wanted)
        raise BackendError(f"the agent of host {name} at {login.title}", reason.strip() or f"said {said}")


def _wait_for(socket: Path, forward: Talk, login: Login, name: str) -> None:
    def is_there() -> bool:
        forward.check_goes_on()
        return socket.exists()

    try:
        process.wait_until(is_there, login.connect_timeout_s + 10.0, f"ssh to {login.title} to lead there")
    except CommandFailed as error:
        raise _failure(login, name, error) from error
    except OutcomeUnknown as error:
        raise HostUnreachable(f"host {name} at {login.title}", str(error), "reachable", host=name) from error


def _failure(login: Login, name: str, error: CommandFailed) -> VolDriverError:
    """Tell an ssh that did not get there, which ends with 255, from a shell there that ended."""
    subject = f"host {name} at {login.title}"
    reason = " ".join(line.strip() for line in error.reason.splitlines() if line.strip(" @\r"))
    if error.exit_code == 255:
        needed = "reached by ssh without a question: a known host key, a key that it takes"
        return HostUnreachable(subject, f"unreachable ({reason})", needed, host=name)
    return BackendError(subject, f"the shell there ended with exit code {error.exit_code}: {reason}")
