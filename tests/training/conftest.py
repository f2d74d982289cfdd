"""Fixtures that all tests of training share."""

import pytest

from msefpn.reporting import report


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page at the end of a training, which times predictions; tests/reporting has it."""
    monkeypatch.setattr(report, "report_training", lambda _: None)
