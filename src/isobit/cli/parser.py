"""The argument parser, whose errors are printable and bounded as all of isobit's are."""

from __future__ import annotations

import argparse
from typing import NoReturn

from isobit.errors import printable


class Parser(argparse.ArgumentParser):
    """Those of the commands are made of this class, too."""

    def error(self, message: str) -> NoReturn:
        """Say what cannot be used, under the usage, and exit with status 2."""
        super().error(printable(message))
