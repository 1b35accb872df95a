"""What the tests with an engine share."""

from collections.abc import Iterator

import pytest

from tests.engine.machine import Machine, running_machine
from tests.stack import Stack, running_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give a running stack. The tests of a file share it, and leave it as it was."""
    with running_stack(tmp_path_factory.mktemp("stack") / "cct") as stack:
        yield stack


@pytest.fixture(scope="session")
def shared_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with running_machine(tmp_path_factory.mktemp("machine") / "cct") as machine:
        yield machine


@pytest.fixture
def machine(shared_machine: Machine) -> Iterator[Machine]:
    """Give a machine of the tests' own, without an engine and without containers."""
    yield shared_machine
    if shared_machine.has_engine():
        shared_machine.compose("down", "-v", "-t", "2")
        shared_machine.stop_engine()
