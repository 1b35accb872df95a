"""The stack on a machine of its own: its networks, and restarts of its engine."""

import json
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

IPV6 = "--default-network-opt=bridge=com.docker.network.enable_ipv6=true"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Yield a machine without an engine."""
    with running_machine(tmp_path_factory.mktemp("machine") / "cct") as machine:
        yield machine


@contextmanager
def stack_in_engine(machine: Machine, *options: str) -> Iterator[None]:
    """Run the stack in an engine with these options, until the end of the context."""
    machine.start_engine(*options)
    machine.compose("up", "-d", "--wait")
    yield
    machine.compose("down", "-v", "-t", "2")
    machine.stop_engine()


@pytest.fixture(scope="module")
def opened(machine: Machine) -> Iterator[Machine]:
    """Yield a machine whose stack is open to the network (APP_ADDRESS=0.0.0.0).

    Its engine gives IPv6 to new networks.
    """
    with stack_in_engine(machine, IPV6):
        yield machine


def test_opened_stack_serves_the_network(opened: Machine) -> None:
    assert opened.get("/ready") == (200, "ready\n")


def test_server_cannot_reach_the_network(opened: Machine) -> None:
    """This machine has the outside address. Another container can connect to it."""
    with socket.create_server((gateway(), 0)) as outside:
        connect = f"import socket; socket.create_connection({outside.getsockname()}, 3)"
        attempt = ("python", "-c", connect)
        with pytest.raises(AssertionError, match="timed out"):
            opened.exec("app", *attempt)
        opened.docker("run", "--rm", "--network=host", f"{opened.name}-app", *attempt)


def test_server_asks_no_name_server_for_outside_names(opened: Machine) -> None:
    """The resolver gives up at once, because it has no name server."""
    resolve = "import socket; socket.getaddrinfo('example.com', 80)"
    with pytest.raises(AssertionError, match="Temporary failure in name resolution"):
        opened.exec("app", "python", "-c", resolve)


@pytest.mark.parametrize("network", ["database", "web"])
def test_no_network_has_ipv6(opened: Machine, network: str) -> None:
    """New networks of this engine have IPv6, which would give the host an address in them."""
    opened.docker("network", "create", f"control-of-{network}")
    (control,) = json.loads(opened.docker("network", "inspect", f"control-of-{network}"))
    assert control["EnableIPv6"]
    (inspected,) = json.loads(opened.docker("network", "inspect", f"{opened.name}_{network}"))
    assert not inspected["EnableIPv6"]
    opened.docker("network", "rm", f"control-of-{network}")


@contextmanager
def engine_fault(machine: Machine, report: Report) -> Iterator[None]:
    """Start the engine again after the context, and wait until everything is healthy."""
    started = machine.started()
    with load(machine, 0, 503) as clients:
        yield
        machine.start_engine(IPV6)
        began = time.monotonic()
        back = clients.wait_for(200, began)
        report(f"back {back.ended - began:.1f} s after the start of the engine")
        for service in ("app", "db", "autoheal"):
            wait_until_healthy(machine, service)
    assert machine.started() != started


def wait_until_healthy(machine: Machine, service: str) -> None:
    """Wait until a service is healthy."""
    until(lambda: machine.health(service) == "healthy", f"{service} healthy")


def test_engine_stopped(opened: Machine, report: Report) -> None:
    with engine_fault(opened, report):
        opened.stop_engine()


def test_engine_killed(opened: Machine, report: Report) -> None:
    """Like a power cut: the engine and the containers end at once."""
    with engine_fault(opened, report):
        opened.lose_power()


def test_healer_survives_an_engine_with_live_restore(machine: Machine) -> None:
    """The containers stay alive, but the restarted engine has a new socket."""
    with stack_in_engine(machine, "--live-restore"):
        started = machine.started()
        machine.stop_engine()
        machine.start_engine("--live-restore")
        assert machine.started() == started
        machine.heal()


def test_healer_heals_in_an_engine_with_userns_remap(machine: Machine) -> None:
    with stack_in_engine(machine, "--userns-remap=default"):
        machine.heal()
