"""The fixtures of the tests with an engine."""

from collections.abc import Iterator

import pytest

from tests.stack import Stack, running_stack


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a running stack, one for each worker of pytest."""
    with running_stack(tmp_path_factory.mktemp("stack") / "cct") as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Yield the running stack. The test files use it in any order.

    Each test leaves it healthy, with accounts, and with its original settings. After a test that
    failed, it starts again from nothing, so that no other test fails for the same reason.
    """
    failures = request.session.testsfailed
    yield shared_stack
    if request.session.testsfailed > failures:
        shared_stack.renew()
