"""Fixtures for all tests: see tests/desk.py, tests/engine.py and tests/s3.py."""

import signal

pytest_plugins = ["tests.desk", "tests.engine", "tests.s3"]


def pytest_configure() -> None:
    """Undo what a shell does to commands in the background, where these tests may run: to ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
