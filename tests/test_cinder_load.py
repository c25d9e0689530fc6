"""Many requests to one Cinder at once, and workers killed under them: no size is lost anywhere.

Cinder runs on native threads; in the full tier once more on those of eventlet, as it does in test_cinder.py.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cinderclient import exceptions
from cindersite import Backend, CinderSite, new_guest
from servicesite import PROJECT, SOON_S

from voldrivers.filesystem import image_bytes
from voldrivers.process import holds_within, wait_until
from voldrivers.sizes import GiB

_WORKER = b"voldrivers.integrations.worker"
pytestmark = [pytest.mark.full, pytest.mark.needs("qemu-system-x86_64", "qemu-img")]
#: What a dozen requests at once may take.
LONG_S = 4 * SOON_S


@pytest.fixture(scope="module", params=["native", pytest.param("eventlet", marks=pytest.mark.full)])
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[CinderSite]:
    made = CinderSite(
        tmp_path_factory.mktemp("cinder"),
        {"files": Backend(section="[DEFAULT]\nquota_volumes = 100\nquota_snapshots = 100\n")},
        native_threads=request.param == "native",
    )
    said = (made.directory / "cinder.out").read_text()
    assert ("starting with native threading" in said) is (request.param == "native")
    yield made
    made.end()


def all_at_once(deeds: Iterable[Callable[[], Any]]) -> list[Any]:  # Any: whatever each gives
    begun = list(deeds)
    with ThreadPoolExecutor(len(begun)) as threads:
        return [each.result(LONG_S) for each in [threads.submit(deed) for deed in begun]]


def is_taken(request: Callable[[], object]) -> bool:
    """Tell whether Cinder has taken a request; every other answer than a refusal is a failure."""
    try:
        request()
    except exceptions.BadRequest:
        return False
    return True


def check_usage(site: CinderSite, volumes: int, gigabytes: int, snapshots: int = 0) -> None:
    """Compare what Cinder counts for the project with what must be; nothing stays reserved."""

    def is_counted() -> bool:
        usage = site.client().quotas.get(PROJECT, usage=True)
        seen[:] = [(kind, getattr(usage, kind)) for kind in ("volumes", "gigabytes", "snapshots")]
        wanted = {"volumes": volumes, "gigabytes": gigabytes, "snapshots": snapshots}
        return all((each["in_use"], each["reserved"]) == (wanted[kind], 0) for kind, each in seen)

    seen: list[Any] = []  # Any: what JSON holds
    assert holds_within(is_counted, SOON_S), seen


def test_a_dozen_at_once(site: CinderSite) -> None:
    made = all_at_once([site.create] * 12)
    check_usage(site, 12, 12)
    all_at_once(partial(site.extend, each, 2) for each in made)
    for each in made:
        assert site.wait(each, "available", LONG_S).size == 2
        assert site.file_bytes(each) == 2 * GiB
    check_usage(site, 12, 24)
    remove_all(site, made)


@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=pytest.mark.full) for turn in range(1, 10))])
def test_extended_twice_at_once_it_has_the_larger_size_that_was_taken(site: CinderSite, turn: int) -> None:
    volume_id, sizes = site.create(1), (2, 3)
    requests = [partial(is_taken, partial(site.extend, volume_id, size)) for size in sizes]
    taken = [size for size, each in zip(sizes, all_at_once(requests), strict=True) if each]
    assert site.wait(volume_id, "available").size == max(taken)
    assert site.file_bytes(volume_id) == max(taken) * GiB
    check_usage(site, 1, max(taken))
    remove_all(site, [volume_id])


def files_of(site: CinderSite, volume_id: str) -> dict[str, int]:
    """The sizes of the volumes in its files, the one that is written to last."""
    paths = [path for path in site.share().glob(f"volume-{volume_id}*") if path.suffix != ".snapshot"]
    paths.sort(key=lambda path: len(path.name))
    return {path.name: image_bytes(path, "qcow2" if path.suffix else "raw") for path in paths}


def test_extended_while_a_snapshot_is_taken_each_has_its_size(
    site: CinderSite, rng: random.Random, tier: str
) -> None:
    """Whichever comes first: what cannot be any more is refused, and nothing else changes."""
    cinder = site.client()
    for _ in range(60 if tier == "full" else 1):
        volume_id = site.create(1)
        snapshot = cinder.volume_snapshots.create(volume_id)
        time.sleep(rng.uniform(0, 0.3))
        is_taken(partial(site.extend, volume_id, 2))
        shown, taken = settled(site, volume_id), cinder.volume_snapshots.get(snapshot.id)
        sizes = list(files_of(site, volume_id).values())
        print(shown.size, taken.status, sizes)
        assert sizes[-1] == shown.size * GiB
        assert sizes[0] == GiB if taken.status == "available" else len(sizes) == 1
        check_usage(site, 1, shown.size + 1, 1)
        remove(site, volume_id)


def settled(site: CinderSite, volume_id: str) -> Any:  # Any: cinderclient has no types
    """Wait until nothing is done any more with a volume that is not attached; give it."""
    cinder = site.client()
    seen: list[Any] = []  # Any: as above

    def is_settled() -> bool:
        seen[:] = [cinder.volumes.get(volume_id), *cinder.volume_snapshots.list()]
        return seen[0].status == "available" and all(each.status in ("available", "error") for each in seen)

    wait_until(is_settled, LONG_S, f"volume {volume_id} to settle: {seen}")
    return seen[0]


def remove(site: CinderSite, volume_id: str) -> None:
    cinder = site.client()
    for each in cinder.volume_snapshots.list():
        cinder.volume_snapshots.delete(each)
    wait_until(lambda: not cinder.volume_snapshots.list(), SOON_S, "the snapshots to go")
    site.delete(volume_id)
    assert os.listdir(site.share()) == []
    check_usage(site, 0, 0)


def test_disks_of_one_guest_are_extended_at_once(site: CinderSite) -> None:
    made = all_at_once([site.create] * 6)
    with new_guest(site.directory) as guest, ExitStack() as attached:
        for each in made:
            attached.enter_context(site.attached(each, guest))
        all_at_once(partial(site.extend, each, 2) for each in made)
        for each in made:
            assert site.wait(each, "in-use", LONG_S).size == 2
            assert site.file_bytes(each) == 2 * GiB == guest.disk(each).capacity_bytes()
        check_usage(site, 6, 12)
    remove_all(site, made)


def workers(site: CinderSite) -> list[int]:
    """The processes that Cinder has started to do the work."""
    return [
        pid
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
        if (told := status_and_command(pid)) and told[0] == site.cinder.pid and _WORKER in told[1]
    ]


def status_and_command(pid: int) -> tuple[int, bytes] | None:
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return int(parent), Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return None


def test_with_its_workers_killed_an_extend_happens_whole_or_not_at_all(
    site: CinderSite, rng: random.Random, tier: str
) -> None:
    cinder, made = site.client(), all_at_once([site.create] * 4)
    sizes, turns = dict.fromkeys(made, 1), 30 if tier == "full" else 2
    with new_guest(site.directory) as guest, ExitStack() as attached:
        for each in made[:2]:
            attached.enter_context(site.attached(each, guest))
        for _ in range(turns):
            all_at_once(partial(site.extend, each, sizes[each] + 1) for each in made)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                time.sleep(rng.uniform(0, 0.8))
                for pid in workers(site):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not unsettled(site), LONG_S, "the volumes to be as before or extended")
            shown = {each: cinder.volumes.get(each).size for each in made}
            print("extended:", *(shown[each] - sizes[each] for each in made))
            assert all(size in (sizes[each], sizes[each] + 1) for each, size in shown.items())
            assert [site.file_bytes(each) for each in made] == [size * GiB for size in shown.values()]
            assert [guest.disk(each).capacity_bytes() // GiB for each in made[:2]] == [*shown.values()][:2]
            sizes = shown
        check_usage(site, 4, sum(sizes.values()))
        assert [site.record(each) for each in made] == [""] * 4
    remove_all(site, made)


def unsettled(site: CinderSite) -> list[str]:
    return [each.id for each in site.client().volumes.list() if each.status not in ("available", "in-use")]


def remove_all(site: CinderSite, made: Sequence[str]) -> None:
    wait_until(lambda: not unsettled(site), SOON_S, "the volumes to be let go of")
    for each in made:
        site.wait(each, "available")
    all_at_once(partial(site.delete, each) for each in made)
    assert os.listdir(site.share()) == []
    check_usage(site, 0, 0)
