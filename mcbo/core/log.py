"""The logger of this package, and text that is safe to print."""

import logging

log = logging.getLogger("mcbo")


def printable(text: str) -> str:
    """Text that does to a terminal nothing but print one line: what cannot be printed in it is written as Python escapes it.

    File names may hold line ends, colors, what clears the screen, and what no encoding can write.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
