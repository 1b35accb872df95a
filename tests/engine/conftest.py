"""The fixture of the tests with an engine."""

from collections.abc import Iterator

import pytest

from tests.stack import Stack, running_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a running stack. The tests of a file share the stack, and leave it as it was."""
    with running_stack(tmp_path_factory.mktemp("stack") / "cct") as stack:
        yield stack
