"""A pytest plugin (`-p tests.no_skips`): a skipped test is a failure, except for what a kernel may lack.

`scripts/test` loads it, so that a test that has quietly stopped running is seen.
"""

from typing import Final

import pytest

ALLOWED: Final = (
    "ext4 online grow",  # needs CAP_SYS_RESOURCE, which some virtual machines and containers take away
    "nfs",  # needs an NFS server in the kernel
)
"""What the reason of a skip may begin with, in any case."""


class NoSkips:
    """Collects the skips of a session."""

    def __init__(self) -> None:
        self._skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a skipped test."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a skipped module."""
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the session if it would pass."""
        if self._skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which skips failed the session."""
        if self._skipped:
            terminalreporter.section("skipped, which is a failure here", red=True)
        for line in self._skipped:
            terminalreporter.write_line(line)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped:
            return
        skipped = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = getattr(report, "wasxfail", skipped).removeprefix("Skipped: ")
        if not reason.lower().startswith(ALLOWED):
            self._skipped.append(f"{report.nodeid}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to watch."""
    config.pluginmanager.register(NoSkips())
