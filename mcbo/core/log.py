"""The logger of this package, and text that is safe to print."""

import logging

log = logging.getLogger("mcbo")


def printable(text: str) -> str:
    """Text as one line that is safe for a terminal: characters that cannot be printed are escaped as Python escapes them.

    File names may hold line ends, colors, codes that clear the screen, and characters that no encoding can write.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
