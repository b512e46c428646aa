"""For all tests."""

from __future__ import annotations

import os
import signal
import tempfile

# A shell gives its background jobs an ignored SIGINT, which processes that tests start would inherit: Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What somebody measured on this machine is no part of a test.
_DATA = tempfile.TemporaryDirectory(prefix="isobit-tests-")
os.environ["ISOBIT_DATA"] = os.path.join(_DATA.name, "data")
