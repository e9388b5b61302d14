"""The other process: ``python -m mcbo.io.sandbox.server DESCRIPTOR``.

Through its control socket it gets the name of a reader and a connection, over which a fork of it serves one file:

client: ``request``, with limits → reader: ``header`` → client: ``limits`` for the data → reader: ``array``, and its bytes

A reader may also send ``refused`` (a sentence), ``error`` (that of a library) or ``memory``. When the fork has ended, the
control socket says how.
"""

import importlib
import os
import resource
import signal
import socket
import sys
import warnings
from contextlib import suppress
from typing import Any

from mcbo.core.errors import InputError
from mcbo.io.sandbox.wire import READY, receive_frame, send_frame

IDLE_S = 60
"""After which the process ends; the next file starts another one."""

MAX_FILES = 256

THREADS = 8
"""Of ITK, at most: each takes address space."""


def serve(control: socket.socket) -> None:
    """Serves one file after the other, until the client is gone or idle."""
    control.settimeout(IDLE_S)
    while True:
        try:
            name, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        except TimeoutError:
            return
        if not name or not descriptors:
            return
        with suppress(Exception):  # it is told by the fork
            importlib.import_module(f"mcbo.io.sandbox.{name.decode()}")
        control.sendall(READY)
        child = os.fork()
        if child == 0:
            try:
                with socket.socket(fileno=descriptors[0]) as connection:
                    control.close()
                    _serve_one(connection, name.decode())
            finally:
                os._exit(0)
        os.close(descriptors[0])
        send_frame(control, {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})


def _serve_one(connection: socket.socket, name: str) -> None:
    with suppress(OSError):  # the client is gone
        request = receive_frame(connection)
        if request is None:
            return
        _limit(request["limits"])
        try:
            reader: Any = importlib.import_module(f"mcbo.io.sandbox.{name}")
            header, read = reader.open_file(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            send_frame(connection, {"header": header})
            allowed = receive_frame(connection)
            if allowed is None:
                return
            _limit(allowed["limits"])
            array, about = read()
            send_frame(connection, {"array": about | {"shape": array.shape, "type": array.dtype.str}})
            connection.sendall(array.data.cast("B"))
        except InputError as error:
            send_frame(connection, {"refused": str(error)})
        except MemoryError:
            send_frame(connection, {"memory": True})
        except ImportError as error:
            send_frame(connection, {"error": f"this takes the package {error.name}, which is not installed"})
        except OSError as error:
            send_frame(connection, {"error": error.strerror or str(error)})
        except Exception as error:
            named = type(error).__module__ == "builtins" and not isinstance(error, RuntimeError | ValueError)
            send_frame(connection, {"error": f"{type(error).__name__}: {error}" if named else str(error)})


def _limit(limits: dict[str, float]) -> None:
    """Limits this process: seconds from now, of waiting and of computing, and bytes on top of what it has now.

    The alarm ends it, wherever it hangs, even if the client is gone.
    """
    signal.setitimer(signal.ITIMER_REAL, limits["seconds"])
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + THREADS * limits["seconds"]) + 2)
    _lower(resource.RLIMIT_AS, _address_space() + int(limits["bytes"]))


def _lower(kind: int, value: int) -> None:
    """Sets the soft limit, which may rise again, as far as the system lets it."""
    hard = resource.getrlimit(kind)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space() -> int:
    """Bytes of address space in use; where the system does not tell, what Python and the libraries take at most."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 (pathlib takes 10 ms to import)
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**30


def main() -> None:
    """Sets the limits that are those of all files: it writes none, opens few, and leaves no core behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's business
    for kind, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, MAX_FILES)):
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))
    warnings.simplefilter("ignore")
    with socket.socket(fileno=int(sys.argv[1])) as control, suppress(OSError):
        serve(control)


if __name__ == "__main__":
    main()
