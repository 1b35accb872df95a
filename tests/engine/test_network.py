"""The stack on a machine of its own: what its networks let through, and what not."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.engine.machine import Machine
from tests.stack import gateway

IPV6 = "--default-network-opt=bridge=com.docker.network.enable_ipv6=true"


@pytest.fixture(scope="module")
def opened(shared_machine: Machine) -> Iterator[Machine]:
    """Give a machine whose stack is open to the network, as with APP_ADDRESS=0.0.0.0."""
    shared_machine.start_engine(IPV6)
    shared_machine.compose("up", "-d", "--wait")
    yield shared_machine
    shared_machine.compose("down", "-v", "-t", "2")
    shared_machine.stop_engine()


def test_opened_stack_serves_the_network(opened: Machine) -> None:
    assert opened.get("/ready") == (200, "ready\n")


def test_server_cannot_reach_the_network(opened: Machine) -> None:
    """An outside address is this machine's. Another container can connect to it."""
    with socket.create_server((gateway(), 0)) as outside:
        connect = f"import socket; socket.create_connection({outside.getsockname()}, 3)"
        attempt = ("python", "-c", connect)
        with pytest.raises(AssertionError, match="timed out"):
            opened.exec("app", *attempt)
        opened.docker("run", "--rm", "--network=host", f"{opened.name}-app", *attempt)


def test_server_asks_no_name_server_for_outside_names(opened: Machine) -> None:
    """The resolver gives up at once, because nobody is asked."""
    resolve = "import socket; socket.getaddrinfo('example.com', 80)"
    with pytest.raises(AssertionError, match="Temporary failure in name resolution"):
        opened.exec("app", "python", "-c", resolve)


@pytest.mark.parametrize("network", ["database", "web"])
def test_no_network_has_ipv6(opened: Machine, network: str) -> None:
    """Although the engine gives it to new networks: the host would have an address in them."""
    opened.docker("network", "create", f"control-of-{network}")
    (control,) = json.loads(opened.docker("network", "inspect", f"control-of-{network}"))
    assert control["EnableIPv6"]
    (inspected,) = json.loads(opened.docker("network", "inspect", f"{opened.name}_{network}"))
    assert not inspected["EnableIPv6"]
    opened.docker("network", "rm", f"control-of-{network}")
