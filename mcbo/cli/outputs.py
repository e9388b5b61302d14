"""Output files that commands are given: nothing else is lost by writing them. Checked before anything is read."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mcbo.core.errors import OutputError
from mcbo.io.files import check_inputs_stay, clear_left, kind_of, probe, reason_of


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path | None]) -> None:
    """Checks the files that a command is to write, by option; of those that it does not write, None.

    Removes what killed commands left of them.

    Raises:
        InputError: if one is an input, by whatever name.
        OutputError: if one is a link, a folder, a pipe or a device, is another output, too, or cannot be written where it is.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    seen: dict[Path, str] = {}
    for option, path in given.items():
        _check_kind(option, path)
        other = seen.setdefault(Path(os.path.realpath(path)), option)
        if other != option:
            raise OutputError(f"{option}: expected another file than that of {other}, got {path} for both")
    check_inputs_stay(given.values(), _files(inputs))
    for path in given.values():
        clear_left(path)


def _check_kind(option: str, path: Path) -> None:
    try:
        if path.is_symlink():
            raise OutputError(
                f"{option}: expected a file to write, found a link: {path}; name the file that it leads to, "
                f"{os.path.realpath(path)}, or remove the link"
            )
        kind = kind_of(path)
        if kind not in (None, "a file"):
            raise OutputError(f"{option}: expected a file to write, found {kind}: {path}")
        probe(next(parent for parent in path.absolute().parents if parent.exists()))
    except OSError as error:
        raise OutputError(f"{option}: {path}: cannot be written there by user {os.getuid()}: {reason_of(error)}") from error


def _files(inputs: Iterable[Path | None]) -> Iterable[Path]:
    """The inputs that were given; of a folder of slices, its files."""
    for path in inputs:
        if path is not None:
            yield path
            if kind_of(path) == "a folder":
                with contextlib.suppress(OSError):  # told when it is read
                    yield from path.iterdir()
