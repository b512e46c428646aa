"""What a command prints for people: lines that are printable and bounded, whatever the names in them."""

from __future__ import annotations

from isobit.errors import printable

LONGEST_LINE = 4000  # characters


def write(text: str) -> None:
    """Print text on standard output; what would act on a terminal is escaped, line by line."""
    print("\n".join(printable(line, LONGEST_LINE) for line in text.split("\n")))
