"""`python -m isobit` is the same as `isobit`."""

import sys

from isobit.cli.main import main

sys.exit(main())
