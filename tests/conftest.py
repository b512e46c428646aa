"""For all tests."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import signal
import tempfile
import zlib

import pytest

# A shell gives its background jobs an ignored SIGINT, which processes that tests start would inherit: Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What somebody measured on this machine is no part of a test.
_DATA = tempfile.TemporaryDirectory(prefix="isobit-tests-")
atexit.register(_DATA.cleanup)  # else Python warns at the end, after pytest's last line
os.environ["ISOBIT_DATA"] = os.path.join(_DATA.name, "data")

SHARE = "ISOBIT_TESTS_SHARE"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="N[:K]", help="one in N of the tests: those of share K, else of one drawn")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the share once, for the processes of pytest-xdist as well."""
    asked = config.getoption("share")
    if asked is None or hasattr(config, "workerinput"):
        return
    found = re.fullmatch(r"([1-9]\d{0,3})(?::(\d{1,4}))?", asked)
    count, which = (int(found[1]), int(found[2] or secrets.randbelow(int(found[1])))) if found else (0, 0)
    if which >= count:
        raise pytest.UsageError(f"--share {asked}: say N, or N:K with K from 0 to N - 1, as 4 or 4:2")
    os.environ[SHARE] = f"{count}:{which}"


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"share: --share {os.environ[SHARE]}" if config.getoption("share") else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("share"):
        return
    count, which = map(int, os.environ[SHARE].split(":"))
    mine: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        (mine if zlib.crc32(item.nodeid.encode()) % count == which else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = mine
