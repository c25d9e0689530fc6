"""LIF and ATT: what one process of the driver does, every other one knows.

A service, an agent and an operator's command use a backend at the same time, and none tells the others.
"""

from contextlib import suppress

from voldrivers.conformance.aids import direct
from voldrivers.conformance.bench import Bench
from voldrivers.conformance.catalogue import check
from voldrivers.conformance.verdicts import Broken, expect
from voldrivers.errors import NotFound


@check(
    "LIF-012",
    "what one process makes, extends or deletes, another one finds as it is",
    hint="keep nothing of a volume in a variable of a class or a module: ask the backend",
)
def known_elsewhere(bench: Bench) -> None:
    """Create, extend and delete, some here and some in a process just started; look in the other one."""
    first, second = bench.create(), bench.create()
    listed = direct.elsewhere(bench, "list_volumes")
    expect({first.id, second.id} <= set(listed), "I9", "another process does not list them", listed=listed)
    made, extended, again = (first.size_bytes + number * bench.step for number in range(3))
    _check_size(direct.elsewhere(bench, "volume_size", first), made, "made here, there")
    direct.elsewhere(bench, "extend_volume", first, extended)
    _check_size(bench.driver.volume_size(first), extended, "extended there, here")
    bench.extend(first, extended)  # as an operator goes on after a process that was killed
    bench.extend(first, again)
    _check_size(direct.elsewhere(bench, "volume_size", bench.now(first)), again, "extended here, there")
    direct.elsewhere(bench, "delete_volume", second)
    expect(second.id not in bench.driver.list_volumes(), "I10", "what was deleted elsewhere is listed")
    with suppress(NotFound):
        size_bytes = bench.driver.volume_size(second)
        raise Broken("I10", "what was deleted elsewhere has a size", size_bytes=size_bytes)
    bench.engine.delete_volume(second.id)
    bench.check_agreed(first, again)


@check(
    "ATT-014",
    "what one process exports, and takes back, is not in the way of what another one has exported",
    hint="number exports, and count who needs them, by what the backend has",
)
def exported_elsewhere(bench: Bench) -> None:
    """Attach a volume; export another one in a process just started, take that back; attach it here, too."""
    first, second = bench.create(), bench.create()
    bench.attach(first, instance=False)
    bench.stamp(first)
    connector = bench.subject.places[0].host.connector()
    for method in ("initialize_connection", "terminate_connection"):
        direct.elsewhere(bench, method, second, connector)
        bench.check_agreed(first, first.size_bytes)
        bench.check_data(first)
    bench.attach(second, instance=False)
    bench.stamp(second)
    bench.check_data(first)
    bench.check_agreed(second, second.size_bytes)


def _check_size(found: int, size_bytes: int, where: str) -> None:
    expect(found == size_bytes, "I1", f"what was {where} has another size", found=found, wanted=size_bytes)
