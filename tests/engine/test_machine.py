"""The stack on a machine of its own: its networks, and restarts of its engine."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Report
from tests.engine.clients import load
from tests.engine.machine import Machine, running_machine
from tests.stack import gateway
from tools.waiting import until

# The engine gives IPv6 to new networks, and maps root of the containers to another user.
OPTIONS = (
    "--default-network-opt=bridge=com.docker.network.enable_ipv6=true",
    "--userns-remap=default",
)


@pytest.fixture(scope="module")
def shared_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Yield a machine whose stack is open to the network (APP_ADDRESS=0.0.0.0)."""
    with running_machine(tmp_path_factory.mktemp("machine") / "cct") as machine:
        machine.start_engine(*OPTIONS)
        machine.up()
        yield machine


@pytest.fixture
def machine(shared_machine: Machine, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Yield the machine. After a test that failed, start its engine and its stack anew."""
    failures = request.session.testsfailed
    yield shared_machine
    if request.session.testsfailed > failures:
        shared_machine.lose_power()
        shared_machine.start_engine(*OPTIONS)
        shared_machine.compose("down", "-v")
        shared_machine.up()


def test_server_cannot_reach_the_network(machine: Machine) -> None:
    """The test tries an outside address: that of the computer that runs the tests."""
    with socket.create_server((gateway(), 0)) as outside:
        connect = f"import socket; socket.create_connection({outside.getsockname()}, 3)"
        attempt = ("python", "-c", connect)
        with pytest.raises(AssertionError, match="timed out"):
            machine.exec("app", *attempt)
        on_host = ("--network=host", "--userns=host")
        machine.docker("run", "--rm", *on_host, f"{machine.name}-app", *attempt)


def has_ipv6(machine: Machine, network: str) -> bool:
    """Return whether a network has IPv6."""
    answer = machine.docker("network", "inspect", "--format={{.EnableIPv6}}", network)
    return answer == "true\n"


def test_networks_of_the_stack_refuse_ipv6(machine: Machine) -> None:
    """This engine gives IPv6 to new networks, for example to `control`."""
    machine.docker("network", "create", "control")
    assert has_ipv6(machine, "control")
    assert not has_ipv6(machine, f"{machine.name}_database")
    assert not has_ipv6(machine, f"{machine.name}_web")
    machine.docker("network", "rm", "control")


def test_healer_heals_in_an_engine_with_userns_remap(machine: Machine) -> None:
    machine.heal()


@contextmanager
def engine_fault(machine: Machine, report: Report) -> Iterator[None]:
    """Run clients while a test ends the engine. Start the engine, and wait until all is healthy.

    The engine must restart app.
    """
    started = machine.started()
    with load(machine, 0, 503) as clients:
        yield
        machine.start_engine(*OPTIONS)
        began = time.monotonic()
        back = clients.wait_for(200, began)
        report(f"back {back.ended - began:.1f} s after the start of the engine")
        wait_until_healthy(machine)
    assert machine.started() != started


def wait_until_healthy(machine: Machine) -> None:
    """Wait until all services are healthy."""
    for service in ("app", "db", "autoheal"):
        machine.wait_until_healthy(service)


def test_engine_stopped(machine: Machine, report: Report) -> None:
    with engine_fault(machine, report):
        machine.stop_engine()


def test_engine_killed(machine: Machine, report: Report) -> None:
    """The containers outlive their engine. The next engine stops them, and starts them again."""
    with engine_fault(machine, report):
        machine.kill_engine()


def test_power_cut_during_a_heal(machine: Machine, report: Report) -> None:
    """A server that hangs takes 10 s to stop. In that time, everything ends at once."""
    heals = machine.count_heals()
    with engine_fault(machine, report):
        machine.in_server("kill -STOP $pid")
        until(lambda: machine.count_heals() > heals, "stopping")
        machine.lose_power()


def test_stopped_stack_starts_with_the_engine(machine: Machine) -> None:
    """docs/tasks.md says so: it is the price of the two tests above."""
    machine.compose("stop")
    machine.stop_engine()
    machine.start_engine(*OPTIONS)
    wait_until_healthy(machine)


def test_healer_survives_an_engine_with_live_restore(machine: Machine) -> None:
    """The containers stay alive, but the restarted engine has a new socket."""
    machine.stop_engine()
    machine.start_engine(*OPTIONS, "--live-restore")
    wait_until_healthy(machine)
    started = machine.started()
    machine.stop_engine()
    machine.start_engine(*OPTIONS, "--live-restore")
    assert machine.started() == started
    machine.heal()
