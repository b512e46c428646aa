"""`python -m isobit` is the same as `isobit`."""

import sys

from isobit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
