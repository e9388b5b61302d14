"""What a program does first, before imports that take seconds, and last. Imports nothing that takes time."""

import gc
import os
import signal
import sys
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses that a shell reports for programs that SIGINT (128 + 2) or SIGTERM (128 + 15) ended."""


def begin() -> None:
    """Until the program is loaded, SIGINT and SIGTERM end it at once: nothing was begun, and no traceback is of use.

    The first process of a container would even ignore SIGTERM. Where standard input, output or error are closed, the next files
    opened would take their numbers, and what libraries print would land in them. Garbage is collected from ``loaded`` on:
    imports leave hardly any, and to search for it again and again takes a tenth of their time.
    """
    gc.disable()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def loaded() -> None:
    """After the imports: what they have made stays, and is not searched for garbage."""
    gc.freeze()
    gc.enable()


def finish(status: int) -> NoReturn:
    """Exits with a status. Of a stopped program, no further signal changes it while Python clears up, which takes a while."""
    if status in (INTERRUPTED, TERMINATED):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # else it takes a third of a second to search for garbage in what the system takes back anyway
    sys.exit(status)
