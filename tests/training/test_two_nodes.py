"""Two network namespaces as two machines, see `tests.two_nodes`."""

import pytest

from tests import two_nodes


def test_two_nodes_end_and_resume(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--whole-grid"):
        pytest.skip("five minutes: --whole-grid")
    if reason := two_nodes.reason_not_to():
        pytest.skip(reason)
    assert two_nodes.main() == 0
