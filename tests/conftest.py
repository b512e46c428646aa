"""For all tests."""

from __future__ import annotations

import atexit
import os
import signal
import tempfile

# A shell gives its background jobs an ignored SIGINT, which processes that tests start would inherit: Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What somebody measured on this machine is no part of a test.
_DATA = tempfile.TemporaryDirectory(prefix="isobit-tests-")
atexit.register(_DATA.cleanup)  # else Python warns at the end, after pytest's last line
os.environ["ISOBIT_DATA"] = os.path.join(_DATA.name, "data")
