"""Who is let in, what a role may do, and what is refused before it is read: tokens, policy, TLS, limits."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from servicesite import AGENT_TOKEN, PROJECT, SOON_S, Running, ServiceSite, secret_file

from voldrivers import process
from voldrivers.api import guard, server
from voldrivers.api.access import Caller
from voldrivers.api.agentapp import make_app
from voldrivers.api.client import context
from voldrivers.api.policy import RULES, Policy, sample
from voldrivers.api.remote import RemoteHost
from voldrivers.cli import main
from voldrivers.errors import HostUnreachable, InvalidInput
from voldrivers.host.local import LocalHost, LocalOptions
from voldrivers.options import read_options
from voldrivers.process import wait_until

TOKENS = {role: f"0123456789abcdef-of-{role}" for role in ("admin", "member", "reader", "other")}
CALLERS = "".join(
    f'[caller.{name}]\ntoken_file = "../{name}.token"\nrole = "{"member" if name == "other" else name}"\n'
    f'project = "{"b" * 32 if name == "other" else PROJECT if name != "admin" else ""}"\n'
    for name in TOKENS
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServiceSite]:
    for name, secret in TOKENS.items():
        secret_file(tmp_path / f"{name}.token", secret)
    policy = tmp_path / "policy.yaml"
    policy.write_text('"volume:delete": "role:admin"\n')
    made = ServiceSite(tmp_path, tables=f'policy_file = "../policy.yaml"\n{CALLERS}', headers=token("admin"))
    yield made
    made.end()


def token(name: str) -> dict[str, str]:
    return {"X-Auth-Token": TOKENS[name]}


def test_roles_and_projects(site: ServiceSite) -> None:
    created = {"volume": {"size": 1, "name": "v"}}
    assert "volume:create" in site.refused(403, "POST", "volumes", created, **token("reader"))
    made = site.done("POST", "volumes", created, **token("member"))["volume"]["id"]
    site.wait(made, "available")
    path, others = f"volumes/{made}", f"/v3/{'b' * 32}/volumes"
    shown = site.done("GET", path, **token("reader"))["volume"]
    assert "os-vol-host-attr:host" not in shown
    assert "os-vol-host-attr:host" in site.done("GET", path)["volume"]
    site.refused(400, "GET", path, **token("other"))  # another project's address
    site.refused(404, "GET", f"{others}/{made}", **token("other"))
    assert site.done("GET", others, **token("other"))["volumes"] == []
    for action in ({"os-extend": {"new_size": 2}}, {"os-reset_status": {"status": "available"}}):
        site.refused(403, "POST", f"{path}/action", action, **token("reader"))
    site.refused(
        403,
        "POST",
        f"{path}/action",
        {"os-extend_volume_completion": {"error": False}},
        **token("member"),
    )
    site.refused(403, "GET", "scheduler-stats/get_pools", **token("member"))
    plug = {"attachment": {"volume_uuid": made, "instance_uuid": "guest", "voldrivers:host": "compute"}}
    assert "voldrivers:attach" in site.refused(403, "POST", "attachments", plug, **token("member"))
    assert "volume:delete" in site.refused(
        403, "DELETE", path, **token("member")
    )  # as the operator's file says
    site.done("DELETE", path)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Auth-Token": ""},
        {"X-Auth-Token": "wrong"},
        {"X-Auth-Token": f"{TOKENS['admin']}x"},
        {"Authorization": "Basic YTpi"},
        {"X-Auth-Token": f"somebody:{PROJECT}"},
    ],
)
def test_strangers_are_refused_before_their_body_is_read(site: ServiceSite, headers: dict[str, str]) -> None:
    site.headers = headers
    assert "token" in site.refused(401, "POST", "volumes", {"volume": {"size": 1}})
    site.refused(401, "GET", "/metrics")
    site.refused(401, "GET", "/openapi.json")
    assert site.ask("GET", "/healthcheck").status_code == 200
    assert site.ask("GET", "/").status_code == 300
    assert not any(secret in site.service.log for secret in (*TOKENS.values(), AGENT_TOKEN, "somebody"))


def test_who_has_no_token_fills_neither_the_figures_nor_the_log(site: ServiceSite) -> None:
    port = site.service.port
    for number in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=SOON_S) as connection:
            connection.sendall(f"METHOD{number}{'Z' * 500} /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert b" 401 " in connection.recv(100)
    with socket.create_connection(("127.0.0.1", port), timeout=SOON_S) as connection:
        connection.sendall(b"this is no HTTP\r\n\r\n")
        assert b" 400 " in connection.recv(100)
    page = site.ask("GET", "/metrics").text
    assert "METHOD" not in page
    assert 'method="other",route="none",status="401"} 3.0' in page
    said = [line["message"] for line in site.logged()]  # all of it JSON
    assert "Invalid HTTP request received." in said
    assert max(map(len, said)) < 300


def test_nobody_keeps_the_service_from_its_files(site: ServiceSite) -> None:
    """Connections that say nothing are turned away before work finds no file any more."""
    volume_id = site.create()
    pid = site.service.process.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (200, 200))
    with ExitStack() as open_ones:
        for _ in range(300):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", site.service.port), SOON_S))
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) > 140, SOON_S, "it to take them")
        assert len(os.listdir(f"/proc/{pid}/fd")) < 180
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) < 140, SOON_S, "it to let go of them")
    site.extend(volume_id, 2)
    assert site.wait(volume_id, "available")["size"] == 2


def test_a_request_that_does_not_come_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEADER_S", 0.3)
    monkeypatch.setattr(guard, "_BODY_S", 0.3)
    made = server.make_server(
        make_app(LocalHost("h", LocalOptions(), process.run), "0123456789abcdef", None, 100.0),
        server.Identity(),
    )
    with server.listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP  # or asyncio leaves Nagle's algorithm on
        thread = threading.Thread(target=server.serve, args=(made, listening))
        thread.start()
        try:
            address = listening.getsockname()
            for begun in (b"", b"GET /healthcheck HTTP/1.1\r\nHost: x"):
                with socket.create_connection(address, timeout=SOON_S) as connection:
                    connection.sendall(begun)
                    assert connection.recv(100) == b""
            with socket.create_connection(address, timeout=SOON_S) as connection:
                connection.sendall(
                    b"POST /v2.1/tenant/os-server-external-events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                    b"Content-Length: 9\r\nContent-Type: application/json\r\n"
                    b"Authorization: Bearer 0123456789abcdef\r\n\r\n12"
                )
                assert b" 408 " in connection.recv(1000)
        finally:
            made.should_exit = True
            thread.join(SOON_S)
    assert not thread.is_alive()


def test_figures_and_a_request_id_over_both_services(site: ServiceSite) -> None:
    given = "req-0123456789abcdef"
    made = site.done(
        "POST", "volumes", {"volume": {"size": 1}}, **{"X-Openstack-Request-Id": given}, **token("admin")
    )
    site.wait(made["volume"]["id"], "available")
    site.extend(made["volume"]["id"], 2)
    site.wait(made["volume"]["id"], "available")
    page = site.ask("GET", "/metrics").text
    assert 'voldrivers_extends_total{phase="settling",result="completed"} 1.0' in page
    assert 'voldrivers_extend_phase_seconds_count{phase="growing"} 1.0' in page
    assert 'volumes/{volume_id}",status="200"' in page
    assert [line["request_id"] for line in site.logged() if line["request_id"] == given] == [given]
    answer = site.ask("GET", "/healthcheck", **{"X-Openstack-Request-Id": "../../etc"})
    assert answer.headers["X-Openstack-Request-Id"].startswith("req-")


def test_what_is_too_long_or_too_often(tmp_path: Path) -> None:
    site = ServiceSite(tmp_path, tables="requests_per_second = 2.0\n")
    try:
        long = {"volume": {"size": 1, "description": "x" * 2**21}}
        assert "longer" in site.refused(413, "POST", "volumes", long)
        answer = httpx.post(
            f"{site.endpoint}/volumes",
            content=(b"x" * 2**16 for _ in range(64)),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 413
        form = httpx.post(f"{site.endpoint}/volumes", data={"volume": "x"})
        assert (form.status_code, "Content-Type: application/json" in form.text) == (400, True)
        codes = [site.ask("GET", "volumes").status_code for _ in range(12)]
        assert 429 in codes
        assert set(codes) == {200, 429}
    finally:
        site.end()


def test_no_other_site_reaches_an_open_service_through_a_browser(tmp_path: Path) -> None:
    """DNS rebinding: a name of theirs that leads to this machine."""
    site = ServiceSite(tmp_path)
    try:
        for name in ("evil.example", "127.0.0.1.evil.example:8776", "[::2]:80", ""):
            assert "Host" in site.refused(403, "GET", "volumes", Host=name)
        site.done("GET", "volumes", Host="localhost:1234")
    finally:
        site.end()


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ('listen = "0.0.0.0:0"', "callers with tokens are needed"),
        (f'listen = "0.0.0.0:0"\n{CALLERS}', "a certificate is needed"),
        ('policy_file = "none"', "policy file .*none: cannot be used"),
        ('policy_file = "wrong.yaml"', "there is no rule volume:explode"),
        ('client_ca_file = "ca.pem"', "needs a certificate of our own"),
        ("requests_per_second = 0", "must be 0.1 to 1000000.0, not 0"),
        ('listen = "nowhere"', r"\[service\] listen: nowhere must be ADDRESS:PORT"),
        ("[caller.x]\ntoken_file = 'x'\nrole = 'king'", r"\[caller.x\] role: must be"),
    ],
)
def test_what_is_wrong_is_told_at_the_start_and_by_config_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], service: str, said: str
) -> None:
    for name, secret in TOKENS.items():
        secret_file(tmp_path / f"{name}.token", secret)
    (tmp_path / "wrong.yaml").write_text('"volume:explode": "role:admin"\n')
    (tmp_path / "share").mkdir()
    (tmp_path / "storage").mkdir()
    file = tmp_path / "storage" / "voldrivers.toml"
    shutil.copy(tmp_path / "wrong.yaml", tmp_path / "storage")
    head = 'state_dir = "s"\n[backend.files]\ndriver = "nfs"\nshare = "../share"\n[service]\n'
    file.write_text(head + service)
    for argv in (["serve"], ["config", "check"]):
        assert main([*argv, "--config", str(file)]) == 3
        seen = capsys.readouterr().err
        assert re.search(said, seen), seen


@pytest.mark.needs("openssl")
def test_tls_with_a_certificate_of_the_client(tmp_path: Path) -> None:
    """Mutual TLS: no certificate, no answer."""
    for name in ("ca", "service", "client", "stranger"):
        make_certificate(tmp_path, name)
    secret_file(tmp_path / "admin.token", TOKENS["admin"])
    tables = 'certificate = "../service.pem"\nkey = "../service.key"\nclient_ca_file = "../client.pem"\n'
    callers = '[caller.admin]\ntoken_file = "../admin.token"\nrole = "admin"\n'
    site = ServiceSite(tmp_path, tables=tables + callers)
    try:
        assert site.service.url.startswith("https://")

        def ask(name: str | None) -> int:
            pair = [tmp_path / f"{name}.{kind}" for kind in ("pem", "key")]
            files = [None, None] if name is None else pair
            with httpx.Client(verify=context(tmp_path / "service.pem", *files)) as client:
                return client.get(f"{site.endpoint}/volumes", headers=token("admin")).status_code

        assert ask("client") == 200
        for other in (None, "stranger"):
            with pytest.raises(httpx.TransportError):
                ask(other)
    finally:
        site.end()


@pytest.mark.needs("openssl")
def test_an_agent_that_asks_the_service_for_its_certificate(tmp_path: Path) -> None:
    """Mutual TLS the other way round: who has the token and no certificate gets no answer either."""
    for name in ("agent", "service", "stranger"):
        make_certificate(tmp_path, name)
    secret_file(tmp_path / "agent.token", AGENT_TOKEN)
    identity = 'certificate = "../agent.pem"\nkey = "../agent.key"\nclient_ca_file = "../service.pem"\n'
    head = f'[agent]\nlisten = "127.0.0.1:PORT"\ntoken_file = "../agent.token"\n{identity}'
    agent = Running(tmp_path / "compute", "agent", f'{head}[host.compute]\nkind = "local"\n')
    try:
        assert agent.url.startswith("https://")
        table = {"url": agent.url, "token_file": "agent.token", "ca_file": "agent.pem"}

        def ask(*shown: str) -> str:
            pair = dict(zip(("certificate", "key"), shown, strict=False))
            options = read_options(RemoteHost.options_type, table | pair, "host compute", tmp_path)
            return RemoteHost("compute", options, process.run).connector().host

        assert ask("service.pem", "service.key") == "compute"
        for shown in ((), ("stranger.pem", "stranger.key")):
            with pytest.raises(HostUnreachable, match="compute"):
                ask(*shown)
    finally:
        agent.end()


def make_certificate(directory: Path, name: str) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
            *("-out", str(directory / f"{name}.pem"), "-keyout", str(directory / f"{name}.key")),
        ],
        check=True,
        capture_output=True,
    )


# --- policy


def test_every_rule_can_be_enforced_and_the_sample_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("\n".join(sample()))
    admin, member, reader = (Caller("c", role, PROJECT) for role in ("admin", "member", "reader"))
    for policy in (Policy(), Policy(file)):
        for rule in RULES:
            assert policy.allows(rule, admin, PROJECT)
            if policy.allows(rule, reader, PROJECT):
                assert policy.allows(rule, member, PROJECT)
            assert not policy.allows(rule, reader, "elsewhere") or "project_id" not in RULES[rule][0]
        assert not policy.allows("volume:extend", reader, PROJECT)
        assert policy.allows("volume:extend", member, PROJECT)
        assert not policy.allows("volume:extend", member, "elsewhere")


def test_a_policy_file_that_is_wrong_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    for text, said in (
        ("- a\n", "must be a table"),
        ("a: [", "cannot be used"),
        ('"volume:nothing": "!"', "there is no rule volume:nothing"),
        (json.dumps({"volume:get": "role:admin or ("}), "the rule of volume:get makes no sense"),
        ('"volume:get":\n', "the rule of volume:get makes no sense"),
        ('"volume:get": "rule:nosuch"', "refers to a rule that is not there, or to itself"),
        ('"volume:get": "rule:volume:get"', "refers to a rule that is not there, or to itself"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidInput, match=rf"policy file .*policy.yaml: {said}"):
            Policy(file)


def test_a_rule_whose_server_cannot_be_asked_is_no(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text('"volume:get": "http://127.0.0.1:1/x"')
    assert not Policy(file).allows("volume:get", Caller("c", "admin", PROJECT), PROJECT)
