"""Inputs by URL: listed and fetched through fsspec, case by case. Only this module imports it, and only where a URL is given.

Nothing of what the libraries say reaches a log, since their texts may hold keys, tokens and signed addresses; their types do.
"""

import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from mcbo.core.errors import InputError
from mcbo.dataset.fetch_error import FetchError, explain
from mcbo.dataset.folders import RemoteFolder
from mcbo.dataset.learn2reg import (
    IMAGE_FOLDERS,
    Case,
    Dataset,
    Pair,
    dataset_of,
    nothing_found,
    one_json,
    pair_images,
    read_json,
)
from mcbo.dataset.remote_path import RemotePath, is_url, shown_url
from mcbo.io.files import format_bytes, free_disk_bytes
from mcbo.io.json_file import MAX_BYTES as MAX_JSON_BYTES
from mcbo.io.nifti_header import MAX_OFFSET, MAX_VOXELS

MAX_IMAGE_BYTES = 8 * MAX_VOXELS + MAX_OFFSET
"""Of the largest image that would be read, in the widest usual type, without compression."""

ATTEMPTS = 3
"""To fetch a file; the libraries try again by themselves within each."""

PAUSE_S = 1.0
"""Before the second attempt; twice that before the third."""

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
"""How long a server may be silent, not how long a file may take."""

_RETRIED_INSIDE = 2
"""Attempts of the S3 library within each of ours; its own 5 would keep one waiting for minutes."""


_NO_FOLDER = "no temporary folder can be made for it (TMPDIR)"


@dataclass(frozen=True)
class _Scheme:
    protocol: str
    package: str | None
    credentials: str = ""


_SCHEMES = {
    "s3": _Scheme(
        "s3", "s3fs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or FSSPEC_S3_ANON=true if it is public"
    ),
    "gs": _Scheme("gcs", "gcsfs", "GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GCS_TOKEN=anon if it is public"),
    "https": _Scheme("http", "aiohttp", "a signed URL"),
    "http": _Scheme("http", "aiohttp", "a signed URL"),
    "memory": _Scheme("memory", None),
}
"""What URLs begin with; ``memory`` is for tests."""


def locate(text: str) -> Path:
    """A path or URL of one file.

    Raises:
        InputError: if it is a URL of a kind that cannot be read here.
    """
    if not is_url(text):
        return Path(text)
    _check_scheme(text)
    return RemotePath(text)


def open_url(url: str, *, split: str, trust_paths: bool = False) -> Dataset:
    """Reads a dataset from a URL, as ``learn2reg.open_input`` does from a path; its images are not fetched yet.

    Args:
        url: of a JSON, or of a folder with or without one (not by HTTP, which has no folders).
        split: ``val``, ``test`` or ``train``.
        trust_paths: let images lie elsewhere in the same bucket.

    Raises:
        InputError: if that cannot be done.
    """
    scheme = _check_scheme(url)
    if urlsplit(url).path.endswith(".json"):
        return _read_json(url, split, trust_paths)
    if scheme.protocol == "http":
        raise InputError(f"{shown_url(url)}: expected the URL of a dataset JSON, since a web server does not list folders")
    folder = RemoteFolder(url.rstrip("/"))
    found = one_json([name for name in _list(url, missing_ok=False) if name.endswith("_dataset.json")], shown_url(url))
    if found:
        return _read_json(_url_of(folder, found), split, trust_paths)
    for subfolder in IMAGE_FOLDERS:
        names = _list(url, missing_ok=True) if subfolder == "." else _list(_url_of(folder, subfolder), missing_ok=True)
        pairs = pair_images([folder.join(f"{subfolder}/{name}", shown_url(url)) for name in names if ".nii" in name])
        if pairs:
            return dataset_of(pairs, shown_url(url))
    raise nothing_found(shown_url(url))


@contextlib.contextmanager
def fetched(case: Case, pairs: Sequence[Pair]) -> Iterator[Case]:
    """The case with its remote images here, in a temporary folder that is gone in the end; as it is, if it has none.

    What cannot be fetched does not stop the rest: whoever reads that image is told why.

    Args:
        case: whose images are wanted.
        pairs: of the case, those whose moving images are.
    """
    wanted = dict.fromkeys(path for path in (case.fixed, *(pair.moving for pair in pairs)) if isinstance(path, RemotePath))
    if not wanted:
        yield case
        return
    with contextlib.ExitStack() as stack:
        try:
            holder = tempfile.TemporaryDirectory(prefix="mcbo-fetch-", ignore_cleanup_errors=True)
        except OSError:
            here: dict[Path, Path] = {path: RemotePath(path.url, problem=_NO_FOLDER) for path in wanted}
        else:
            folder = Path(stack.enter_context(holder))
            here = {path: _fetch_image(path, folder / str(i)) for i, path in enumerate(wanted)}
        yield replace(
            case,
            fixed=here.get(case.fixed, case.fixed),
            pairs=tuple(
                replace(pair, fixed=here.get(pair.fixed, pair.fixed), moving=here.get(pair.moving, pair.moving))
                for pair in case.pairs
            ),
        )


def _fetch_image(path: RemotePath, folder: Path) -> Path:
    copy = folder / path.name
    try:
        _fetch(path.url, copy, MAX_IMAGE_BYTES)
    except FetchError as error:
        return RemotePath(path.url, problem=str(error))
    return RemotePath(path.url, local_copy=str(copy))


def _read_json(url: str, split: str, trust_paths: bool) -> Dataset:
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mcbo-fetch-"))
        except OSError:
            raise InputError(f"{shown_url(url)}: expected a dataset JSON, but: {_NO_FOLDER}") from None
        copy = Path(folder) / "dataset.json"
        try:
            _fetch(url, copy, MAX_JSON_BYTES)
        except FetchError as error:
            raise InputError(f"{shown_url(url)}: expected a dataset JSON, but: {error}") from None
        parent = RemoteFolder(url=_parent(url), trusted=trust_paths)
        return read_json(RemotePath(url, local_copy=str(copy)), split=split, folder=parent)


def _parent(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rpartition("/")[0], "", ""))


def _url_of(folder: RemoteFolder, name: str) -> str:
    return folder.join(name, shown_url(folder.url)).url


def _check_scheme(url: str) -> _Scheme:
    """What reads a URL, if it is installed.

    Raises:
        InputError: if nothing does.
    """
    name, _, rest = url.partition("://")
    scheme = _SCHEMES.get(name.lower())
    if scheme is None or "::" in rest or not _has_host(url):
        known = ", ".join(f"{known}://" for known in _SCHEMES if known != "memory")
        raise InputError(f"{shown_url(url)}: expected a path, or a URL that begins with one of {known} and a bucket or host")
    # Else gcsfs asks by gRPC of what kind each bucket is: where that port is closed, it waits a minute, again and again.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for package in ("fsspec", scheme.package):
        try:
            if package:
                importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"{shown_url(url)}: expected the package {package} to read {name.lower()}://, but it is not installed: "
                "install the extra, pip install '.[remote]'"
            ) from error
    return scheme


def _scheme_of(url: str) -> _Scheme:
    return _SCHEMES[urlsplit(url).scheme.lower()]


def _silence() -> str:
    return f"no answer came within {CONNECT_TIMEOUT_S} s (to connect) or {READ_TIMEOUT_S} s"


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).netloc)
    except ValueError:
        return False


def _open_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there. Connections are kept for the next file."""
    import fsspec

    protocol = _scheme_of(url).protocol
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol == "http":
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        # Signatures hold for an address as it is written; and a .nii.gz is wanted as it lies there, not unpacked on the way.
        options |= {"encoded": True, "client_kwargs": {"timeout": timeout, "auto_decompress": False}}
        options |= {"headers": {"Accept-Encoding": "identity"}}
        url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    elif protocol == "s3":
        limits = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S, "retries": {"total_max_attempts": 1}}
        options |= {"config_kwargs": limits}
    elif protocol == "gcs":
        options |= {"requests_timeout": READ_TIMEOUT_S}
    system = fsspec.filesystem(protocol, **options)
    if protocol == "s3":
        system.retries = _RETRIED_INSIDE
    return system, system._strip_protocol(url)


def _list(url: str, *, missing_ok: bool) -> list[str]:
    """Names of the files of a folder, sorted.

    Raises:
        InputError: if that cannot be listed.
    """
    try:
        system, path = _open_system(url)
        entries = system.ls(path, detail=True)
    except Exception as error:
        reason = explain(error, _scheme_of(url).credentials, _silence())
        if missing_ok and isinstance(error, FileNotFoundError):
            return []
        raise InputError(f"{shown_url(url)}: expected a folder with a dataset, but: {reason}") from None
    return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")


def _fetch(url: str, copy: Path, limit: int) -> None:
    """Fetches a file, whole or not at all.

    Raises:
        FetchError: if that fails, at the last attempt.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_once(url, copy, limit)
        except Exception as error:
            copy.unlink(missing_ok=True)
            reason = explain(error, _scheme_of(url).credentials, _silence())
            if not reason.transient or attempt == ATTEMPTS:
                raise (FetchError(f"{reason}, at {ATTEMPTS} attempts") if reason.transient else reason) from None
            time.sleep(PAUSE_S * attempt)
        else:
            return


def _fetch_once(url: str, copy: Path, limit: int) -> None:
    system, path = _open_system(url)
    found = system.info(path)
    size = found.get("size")
    if found.get("type") == "directory":
        raise FetchError("there is a folder of that name, and no file")
    if size is None:
        raise FetchError("the server does not say how large it is, so that nobody could tell whether it came whole")
    if size > limit:
        raise FetchError(f"it has {size} bytes, more than the {limit} that are read")
    copy.parent.mkdir(exist_ok=True)
    free = free_disk_bytes(copy.parent)
    if size > free:
        raise FetchError(f"it has {format_bytes(size)}, but {format_bytes(free)} are free for temporary files (TMPDIR)")
    system.get_file(path, str(copy), callback=_stop_beyond(size))
    came = copy.stat().st_size if copy.exists() else 0
    if came != size:
        raise FetchError(f"it broke off: {came} of {size} bytes came", transient=True)


def _stop_beyond(size: int) -> Any:
    """Told of each block that comes; ends a transfer that brings more than was announced, before it fills the disk."""
    from fsspec.callbacks import Callback

    class Stop(Callback):  # type: ignore[misc, unused-ignore]
        def relative_update(self, inc: int = 1) -> None:
            self.value += inc
            if self.value > size:
                raise FetchError(f"more than the announced {size} bytes came", transient=True)

    return Stop()
