"""For all tests."""

from __future__ import annotations

import signal

# A shell gives its background jobs an ignored SIGINT, which processes that tests start would inherit: Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
