"""The configuration: where it is found, what it may say, and the classes behind its names."""

import dataclasses
import os
from pathlib import Path

import pytest
import vendor

from voldrivers import plugins, registry
from voldrivers.api.remote import RemoteHost, RemoteOptions
from voldrivers.config import AgentConfig, Policy
from voldrivers.errors import InvalidInput, NotSupported
from voldrivers.host.local import LocalOptions
from voldrivers.nfs.options import NFSOptions
from voldrivers.process import run

GOOD = """
state_dir = "state"
[policy]
extend_attached = false
deadline_s = 7
[backend.fast]
driver = "acme"
directory = "/srv/acme"
window = "1M"
[host.one]
kind = "acme"
directory = "/run/acme"
"""


@pytest.fixture(autouse=True)
def _vendor_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor.install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "voldrivers.toml"
    path.write_text(text)
    return path


def test_reads_a_good_file(tmp_path: Path) -> None:
    config = registry.load(written(tmp_path, GOOD))
    assert config.state_dir == tmp_path / "state"
    assert config.policy == Policy(extend_attached=False, deadline_s=7.0)
    backend, host = config.backends["fast"], config.hosts["one"]
    assert (backend.name, backend.driver) == ("fast", "acme")
    assert isinstance(backend.options, vendor.AcmeOptions)
    assert (backend.options.directory, backend.options.window) == (Path("/srv/acme"), 2**20)
    driver, one = registry.make_driver(backend, run), registry.make_host(host, run)
    assert isinstance(driver, vendor.AcmeDriver)
    assert (driver.name, driver.options) == ("fast", backend.options)
    assert (one.name, one.connector().host) == ("one", "one")


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    config = registry.load(written(tmp_path, GOOD))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.policy.deadline_s = 1  # type: ignore[misc]  # that it cannot be set is the test
    with pytest.raises(TypeError):
        config.backends["slow"] = config.backends["fast"]  # type: ignore[index]  # the same


def test_an_absolute_state_directory_stays(tmp_path: Path) -> None:
    text = GOOD.replace('"state"', '"/var/lib/voldrivers"')
    assert registry.load(written(tmp_path, text)).state_dir == Path("/var/lib/voldrivers")


def test_a_relative_path_of_the_file_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert registry.load(Path("voldrivers.toml")).state_dir == tmp_path / "state"


def test_without_hosts_there_is_this_one(tmp_path: Path) -> None:
    config = registry.load(written(tmp_path, GOOD.partition("[host.one]")[0]))
    assert [(host.name, host.kind) for host in config.hosts.values()] == [("local", "local")]


WRONG = {
    "no state_dir": ('state_dir = "state"', "", ": state_dir: must be given"),
    "state_dir a number": ('"state"', "3", ": state_dir: must be a path, not 3"),
    "unknown key": ("state_dir", "statedir = 1\nstate_dir", ": statedir: there is no such key or table"),
    "unknown table": ("[policy]", "[polizei]\n[policy]", ": polizei: there is no such key or table"),
    "table as a value": (
        "[policy]\nextend_attached = false\ndeadline_s = 7",
        "policy = 1",
        ": [policy]: must be a table, not 1",
    ),
    "unknown policy": (
        "extend_attached",
        "extend_atached",
        "[policy] extend_atached: there is no such option",
    ),
    "policy of a wrong type": ("= false", '= "no"', "[policy] extend_attached: must be true or false"),
    "no time": ("= 7", "= 0", "[policy] deadline_s: must be 0.01 to 2592000, not 0"),
    "no number": ("= 7", "= nan", "[policy] deadline_s: must be a number, not nan"),
    "endless time": ("= 7", "= inf", "[policy] deadline_s: must be a number, not inf"),
    "ten thousand years": ("= 7", "= 3e11", "[policy] deadline_s: must be 0.01 to 2592000, not 3"),
    "longer than time": ("= 7", "= 9e18", "[policy] deadline_s: must be 0.01 to 2592000, not 9e+18"),
    "endless digits": ("= 7", f"= 0x{'f' * 5000}", "[policy] deadline_s: must be a number, not a number of"),
    "no driver": ('driver = "acme"\n', "", "[backend.fast] driver: must be given, one of: "),
    "unknown driver": (
        'driver = "acme"',
        'driver = "acne"',
        "[backend.fast] driver: 'acne' is not installed",
    ),
    "unknown kind": (
        'kind = "acme"',
        'kind = "acne"',
        "[host.one] kind: 'acne' is not installed; installed: acme",
    ),
    "driver a list": ('driver = "acme"', "driver = [1]", "[backend.fast] driver: must be given"),
    "unknown option": (
        "window",
        "widow",
        "[backend.fast] widow: there is no such option; known: directory, ",
    ),
    "missing option": ('directory = "/srv/acme"', "", "[backend.fast] directory: must be given: where the"),
    "wrong size": ('"1M"', '"1Q"', "[backend.fast] window: write a size as"),
    "not a choice": ("window", 'mode = "warp"\nwindow', "[backend.fast] mode: must be one of slow, quick"),
    "unknown host option": ('kind = "acme"', 'kind = "acme"\nx = 1', "[host.one] x: there is no such option"),
    "bad name": ("[backend.fast]", '[backend."../x"]', "[backend.'../x']: a name must be letters"),
    "backend is no table": (
        "[backend.fast]",
        "[backend]\na = 1\n[backend.fast]",
        "[backend.a]: must be a table",
    ),
}


@pytest.mark.parametrize(("old", "new", "said"), WRONG.values(), ids=WRONG.keys())
def test_refuses_what_it_does_not_know(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(InvalidInput) as caught:
        registry.load(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_needs_a_backend(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\[backend.NAME\]: one is needed, with a driver: .*acme"):
        registry.load(written(tmp_path, 'state_dir = "state"'))


def test_tells_every_mistake_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("extend_attached", "a").replace("window", "b").replace("state_dir", "c")
    checked = registry.check(written(tmp_path, text))
    assert checked.config is None
    assert len(checked.problems) == 4  # c is unknown, and state_dir is missing


def test_tells_every_mistake_of_a_table(tmp_path: Path) -> None:
    text = GOOD.replace('window = "1M"', 'window = "x"\nmode = "warp"\nnix = 1').replace(
        "directory", "direktory"
    )
    checked = registry.check(written(tmp_path, text))
    keys = [str(problem).partition("] ")[2].partition(":")[0] for problem in checked.problems]
    assert keys == ["direktory", "window", "mode", "nix", "directory", "direktory", "directory"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("reserved_percentage = 200", "[backend.nfs] reserved_percentage: must be 0 to 99, not 200"),
        ("max_over_subscription_ratio = -1", "max_over_subscription_ratio: must be 1.0 or more, not -1"),
        ('share = "server:export"', "[backend.nfs]: share 'server:export': must be server:/export or"),
        ('share = ""', "[backend.nfs] share: must be a path, not ''"),
    ],
)
def test_what_a_driver_would_refuse_is_told_by_the_check(tmp_path: Path, table: str, said: str) -> None:
    share = "" if "share" in table else 'share = "files"\n'
    text = f'state_dir = "state"\n[backend.nfs]\ndriver = "nfs"\n{share}{table}\n'
    checked = registry.check(written(tmp_path, text))
    assert checked.config is None
    (problem,) = checked.problems
    assert said in str(problem)


def test_the_check_makes_hosts_and_drivers_but_reading_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, *_arguments: object) -> None:
        raise InvalidInput("directory", "is haunted")

    path = written(tmp_path, GOOD)
    for kind in (vendor.AcmeDriver, vendor.AcmeHost):
        monkeypatch.setattr(kind, "__init__", refuse)
    registry.load(path)
    assert [str(problem) for problem in registry.check(path).problems] == [
        f"{path}: [backend.fast]: directory: is haunted",
        f"{path}: [host.one]: directory: is haunted",
    ]


@pytest.mark.parametrize("kind", ["", 'kind = "acne"\n'])
def test_keys_are_shown_where_nobody_knows_their_meaning(tmp_path: Path, kind: str) -> None:
    checked = registry.check(written(tmp_path, GOOD.replace('kind = "acme"\n', kind)))
    shown = {s.help.name: s.value for s in checked.settings if s.table == "host.one"}
    assert shown == {"kind": "acne" if kind else None, "directory": "/run/acme"}


def test_relative_paths_start_at_the_file_wherever_it_is_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for directory in (home, elsewhere):
        directory.mkdir()
    text = """
        state_dir = "state"
        [backend.here]
        driver = "nfs"
        share = "files"
        mount_point_base = "mounts"
        [backend.there]
        driver = "nfs"
        share = "server:/files"
        [host.local]
        kind = "local"
        qmp_dir = "sockets"
    """
    path = written(home, text)
    monkeypatch.chdir(elsewhere)
    for config in (registry.load(path), registry.load(Path("../home/voldrivers.toml"))):
        here, there = (config.backends[name].options for name in ("here", "there"))
        local = config.hosts["local"].options
        assert isinstance(here, NFSOptions)
        assert isinstance(there, NFSOptions)
        assert isinstance(local, LocalOptions)
        paths = [config.state_dir, here.mount_point_base, local.qmp_dir, Path(here.share)]
        assert [Path(os.path.normpath(str(p))) for p in paths] == [
            home / name for name in ("state", "mounts", "sockets", "files")
        ]
        assert all(p is not None and p.is_absolute() for p in paths)
        assert there.share == "server:/files"


def test_explains_every_key(tmp_path: Path) -> None:
    checked = registry.check(written(tmp_path, GOOD))
    assert not checked.problems
    seen = {(s.table, s.help.name): (s.value, s.given) for s in checked.settings}
    assert seen == {
        ("", "state_dir"): ("state", True),
        ("policy", "extend_attached"): ("false", True),
        ("policy", "image_extend_attached"): ("false", False),
        ("policy", "deadline_s"): ("7", True),
        ("backend.fast", "driver"): ("acme", True),
        ("backend.fast", "directory"): ("/srv/acme", True),
        ("backend.fast", "mode"): ("slow", False),
        ("backend.fast", "window"): ("1M", True),
        ("host.one", "kind"): ("acme", True),
        ("host.one", "directory"): ("/run/acme", True),
    }
    assert all(s.help.meaning and s.help.kind and s.help.default for s in checked.settings)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"state_dir = \n", r"is not TOML: .*line 1"),
        (b'a = 1\na = 2\nstate_dir = "x"', r"is not TOML: .*line 2"),
        (b'state_dir = "\xff"', r"is not UTF-8 at byte 13"),
        (b"a = " + b"1" * 5000, r"cannot be read: Exceeds the limit"),
        (b"a = " + b"[" * 100_000, r"cannot be read: maximum recursion depth"),
    ],
)
def test_names_the_line_of_a_syntax_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "voldrivers.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=said) as caught:
        registry.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("name", "reason"), [("nix.toml", "No such file"), (".", "Is a directory")])
def test_says_why_a_file_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"cannot be read: {reason}"):
        registry.load(tmp_path / name)


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        ("gone", r"library acme_array: it is not installed; run: pip install 'acme\[array\]'"),
        ("absent", "cannot be loaded from vendor:NoSuchDriver"),
        ("foreign", "vendor:ENTRY_POINTS is no Driver"),
        ("abstract", "vendor:Unfinished lacks create_volume, delete_volume, .*volume_size"),
    ],
)
def test_a_broken_driver_is_named_and_spares_the_others(tmp_path: Path, driver: str, said: str) -> None:
    path = written(tmp_path, f'{GOOD}\n[backend.bad]\ndriver = "{driver}"\n')
    config = registry.load(path)
    registry.make_driver(config.backends["fast"], run)
    with pytest.raises(NotSupported, match=said):
        registry.make_driver(config.backends["bad"], run)
    (problem,) = registry.check(path).problems
    assert "[backend.bad]" in str(problem)


def test_refuses_a_driver_that_two_packages_offer(tmp_path: Path) -> None:
    other = tmp_path / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[voldrivers.drivers]\nacme = vendor:AcmeDriver\n")
    with pytest.raises(InvalidInput, match=r"'acme' is offered by (acme and other|other and acme)"):
        plugins.driver_class("acme")


def test_lists_the_drivers_of_every_package() -> None:
    assert {"acme", "nfs"} <= set(plugins.driver_names())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("8", 8),
        ("0.5", 0.5),
        ('"8"', "8"),
        ("20G", "20G"),
        ("raw", "raw"),
        ("", ""),
        ("1\nx=2", "1\nx=2"),
        ("[1]", "[1]"),
        ("a=b", "a=b"),
        pytest.param("1" * 5000, "1" * 5000, id="endless"),
        pytest.param("[" * 100_000, "[" * 100_000, id="deep"),
    ],
)
def test_reads_option_values_as_toml_or_text(text: str, value: object) -> None:
    seen = registry.read_value(text)
    assert (seen, type(seen)) == (value, type(value))


def test_names_the_extra_of_a_missing_library() -> None:
    missing = {
        name: str(plugins.missing_library(ModuleNotFoundError(name=name)))
        for name in ("qemu.qmp.protocol", "os_brick", "nonsense")
    }
    assert "voldrivers[host]" in missing["qemu.qmp.protocol"]
    assert "voldrivers[nfs]" in missing["os_brick"]
    assert "no extra of voldrivers brings it" in missing["nonsense"]


class TestFind:
    def place(self, directory: Path) -> Path:
        path = directory / "voldrivers" / "voldrivers.toml"
        path.parent.mkdir(parents=True)
        path.touch()
        return path

    def test_the_explicit_one_wins(self) -> None:
        environ = {"VOLDRIVERS_CONFIG": "/b", "HOME": "/root"}
        assert registry.find_config(Path("/a"), environ) == Path("/a")
        assert registry.find_config(None, environ) == Path("/b")

    def test_then_the_places_of_xdg_in_their_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.place(tmp_path / "relative")
        monkeypatch.chdir(tmp_path)
        places = [self.place(tmp_path / name) for name in ("user", "first", "second")]
        dirs = f"relative:{tmp_path / 'first'}:{tmp_path / 'second'}"
        environ = {"XDG_CONFIG_HOME": str(tmp_path / "user"), "XDG_CONFIG_DIRS": dirs}
        for place in places:
            assert registry.find_config(None, environ) == place
            place.unlink()

    def test_home_stands_in_for_xdg_config_home(self, tmp_path: Path) -> None:
        place = self.place(tmp_path / ".config")
        assert registry.find_config(None, {"HOME": str(tmp_path), "VOLDRIVERS_CONFIG": ""}) == place

    def test_lists_the_places_when_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput) as caught:
            registry.find_config(None, {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": f"{tmp_path}/etc"})
        for place in (f"{tmp_path}/.config", f"{tmp_path}/etc", "/etc"):
            assert f"{place}/voldrivers/voldrivers.toml" in str(caught.value)


# --- of an agent

AGENT = """
[agent]
listen = "127.0.0.1:0"
token_file = "token"
certificate = "/etc/agent.pem"
[host.one]
kind = "local"
qmp_dir = "sockets"
"""


def test_reads_the_file_of_an_agent(tmp_path: Path) -> None:
    path = written(tmp_path, AGENT)
    config = registry.load_agent(path)
    options = config.agent
    assert (options.listen, options.token_file) == ("127.0.0.1:0", tmp_path / "token")
    assert options.conformance == "off"
    assert (options.certificate, options.key) == (Path("/etc/agent.pem"), None)
    host = registry.make_host(config.host, run)
    assert (host.name, host.options.qmp_dir) == ("one", tmp_path / "sockets")
    checked = registry.check(path)
    assert not checked.problems
    assert isinstance(checked.config, AgentConfig)
    assert ("agent", "key") in {(s.table, s.help.name) for s in checked.settings}


AGENT_WRONG = {
    "no such wish": (
        "[host.one]",
        "conformance = 'yes'\n[host.one]",
        "[agent] conformance: must be one of off, host, guest, not 'yes'",
    ),
    "a guest nobody finds": (
        '[host.one]\nkind = "local"\nqmp_dir = "sockets"',
        "conformance = 'guest'\n[host.one]\nkind = 'local'",
        '[agent] conformance: "guest" needs qmp_dir in [host.one]',
    ),
    "no devices here": (
        '[host.one]\nkind = "local"\nqmp_dir = "sockets"',
        "conformance = 'host'\n[host.one]\nkind = 'agent'\nurl = 'http://a'\ntoken_file = 'token'",
        "[agent] conformance: [host.one] must be of kind local, not agent",
    ),
    "no listen": ('listen = "127.0.0.1:0"\n', "", "[agent] listen: must be given"),
    "no token": ('token_file = "token"\n', "", "[agent] token_file: must be given"),
    "unknown option": ("certificate", "certifikate", "[agent] certifikate: there is no such option"),
    "no table": (AGENT, "agent = 1\n[host.one]\nkind = 'local'", "[agent]: must be a table, not 1"),
    "a backend": (
        AGENT,
        f"{AGENT}[backend.fast]\ndriver = 'acme'",
        ": backend: there is no such key or table; known: [agent], [host.NAME]",
    ),
    "state_dir": ("[agent]", "state_dir = 'x'\n[agent]", ": state_dir: there is no such key or table"),
    "no host": (
        AGENT[AGENT.index("[host") :],
        "",
        "[host.NAME]: exactly one is needed, with the name that the controller knows it by",
    ),
    "two hosts": (
        "[host.one]",
        "[host.two]\nkind = 'local'\n[host.one]",
        "[host.NAME]: exactly one is needed",
    ),
}


@pytest.mark.parametrize(("old", "new", "said"), AGENT_WRONG.values(), ids=AGENT_WRONG.keys())
def test_refuses_the_file_of_an_agent(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in AGENT
    path = written(tmp_path, AGENT.replace(old, new, 1))
    with pytest.raises(InvalidInput) as caught:
        registry.load_agent(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert said in "".join(map(str, registry.check(path).problems))


@pytest.mark.parametrize("text", [GOOD, "[host.one]\nkind = 'local'\n"])
def test_a_file_without_an_agent_is_refused_as_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"\[agent\]: must be there, with listen and token_file"):
        registry.load_agent(written(tmp_path, text))


def test_the_file_of_an_agent_is_none_of_a_controller(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"\[agent\]: this is the configuration of an agent, without backends"
    ):
        registry.load(written(tmp_path, AGENT))


def test_a_controller_names_hosts_behind_agents(tmp_path: Path) -> None:
    table = '[host.two]\nkind = "agent"\nurl = "https://two:9871"\ntoken_file = "token"\n'
    config = registry.load(written(tmp_path, GOOD + table))
    host = registry.make_host(config.hosts["two"], run)
    assert isinstance(host, RemoteHost)
    assert isinstance(host.options, RemoteOptions)
    assert host.options.token_file == tmp_path / "token"
    wrong = written(tmp_path, GOOD + table.replace("https", "ftp"))
    (problem,) = registry.check(wrong).problems
    assert "[host.two]: url ftp://two:9871 must be https://NAME:PORT or http://NAME:PORT" in str(problem)
