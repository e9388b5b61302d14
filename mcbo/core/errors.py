"""What can go wrong, in the user's words: each message says who, what was expected and what was found."""

from collections.abc import Iterator
from contextlib import contextmanager

from mcbo.core.log import without_secrets


class McboError(Exception):
    """Base of every error that a user of this package can cause or meet; its message has no secrets of URLs."""

    def __init__(self, message: object = "") -> None:
        super().__init__(without_secrets(str(message)))


class InputError(McboError):
    """A file, a dataset or an option is not what it has to be; nothing was computed from it."""


class NoOverlapError(InputError):
    """Images have nothing in common where they lie."""


class ShapeError(McboError):
    """A tensor does not have the shape that a step asks for."""


class DeviceError(McboError):
    """The requested device is not available."""


class KernelError(McboError):
    """The compiled kernels of a device do not compile, do not launch, or differ from the reference."""


class MemoryBudgetError(McboError):
    """A case cannot be computed within the memory that it may use."""


class DeviceMemoryError(McboError):
    """A device ran out of memory while it computed a case, and again within half of the budget."""


class NonFiniteError(McboError):
    """A stage produced NaN or infinity; its name is in the message."""


class OutputError(McboError):
    """A result cannot be written where it should go."""


class DiskSpaceError(OutputError):
    """There is no space for the results of a case; it was not started."""


class ClusterError(McboError):
    """Requested workers are missing, or are not of the same kind as the client."""


@contextmanager
def naming(who: object) -> Iterator[None]:
    """Puts ``who`` in front of the message of an error in the block, which keeps its type."""
    try:
        yield
    except McboError as error:
        raise type(error)(f"{who}: {error}") from error
