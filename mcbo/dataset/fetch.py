"""Files fetched through fsspec, whole or not at all, within limits; its caches have none and may serve half a file as whole.

Messages of the libraries may hold keys, tokens and signed URLs: only the types of errors and the server's status are used.
"""

import errno
import functools
import importlib
import os
import posixpath
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from mcbo.core.errors import InputError
from mcbo.io.files import format_bytes, free_disk_bytes
from mcbo.io.source import Source, shown_url

ATTEMPTS = 3
PAUSE_S = 1.0
"""Before the second attempt to fetch a file; twice that before the third."""

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
"""Limits on the silence of a server, not on the time that a file takes."""

_AWS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or FSSPEC_S3_ANON=true if it is public"
_SCHEMES = {
    "s3": ("s3fs", _AWS),
    "gs": ("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GCS_TOKEN=anon if it is public"),
    "https": ("aiohttp", "a signed URL"),
    "http": ("aiohttp", "a signed URL"),
    "memory": ("fsspec", ""),
}
"""By scheme, the package that reads it and where credentials come from. ``memory`` is for tests."""

_DENIED = "PermissionError"
_CERTIFICATE = "the server's certificate is not trusted here: SSL_CERT_FILE (s3: AWS_CA_BUNDLE) names a private authority"
_UNREACHABLE = "the server cannot be reached: is there a network, and is the host's name right?"
_REASONS = (
    (r".*Credential.*|TokenRetrievalError|ProfileNotFound|RefreshError", "no credentials were found: set {credentials}", False),
    (_DENIED, "access is denied: expected credentials that allow it: {credentials}", False),
    (r"(Connect|Read)?Timeout(Error)?", "no answer within {connect} s (connecting) or {read} s (reading)", True),
    (r".*CertVerificationError|.*CertificateError", _CERTIFICATE, False),
    (r"(ClientConnector|EndpointConnection|ConnectionRefused|SSL|gai)[Ee]rror", _UNREACHABLE, True),
    (r"(ClientPayload|ClientOS|IncompleteRead|HTTPClient|ResponseStreaming)Error", "the connection broke off", True),
    (r"ServerDisconnectedError|Connection(Closed)?Error", "the connection broke off", True),
)
"""Names of error types of botocore, aiohttp, google.auth, requests and Python, since none of these has to be installed; what
they mean; and whether another attempt may help."""


class FetchError(Exception):
    """Why a file cannot be fetched, as the end of a sentence; ``transient``: another attempt may help."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


def check_scheme(url: str) -> str:
    """The scheme of a URL, such as ``s3``; raises ``InputError`` if it cannot be read here."""
    name, _, rest = url.partition("://")
    scheme = name.lower()
    try:
        host = urlsplit(url).netloc
    except ValueError:
        host = ""
    if scheme not in _SCHEMES or "::" in rest or not host:  # "::" would chain another file system
        known = ", ".join(f"{known}://" for known in _SCHEMES if known != "memory")
        raise InputError(f"{shown_url(url)}: expected a path, or a URL that begins with one of {known} and a bucket or host")
    # Else gcsfs asks by gRPC for the kind of each bucket; where that port is closed, each time it waits a minute.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    package = _SCHEMES[scheme][0]
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{shown_url(url)}: expected the package {package} to read {scheme}://, but it is not installed: "
            "install the extra, pip install '.[remote]'"
        ) from error
    return scheme


def list_files(url: str, *, missing_ok: bool = False) -> list[str]:
    """Sorted names of the files in a folder; raises ``InputError`` if it cannot be listed."""
    try:
        system, path = _open_system(url)
        entries = system.ls(path, detail=True)
    except Exception as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            return []
        raise InputError(f"{shown_url(url)}: expected a folder with a dataset, but: {explain(error, url)}") from None
    return sorted(posixpath.basename(entry["name"]) for entry in entries if entry["type"] == "file")


def fetch(source: Source, copy: Path, *, limit: int) -> Source:
    """The source with a whole copy, of at most ``limit`` bytes, or with the reason why the last attempt failed."""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_S * attempt)
        try:
            _fetch_once(source.url, copy, limit)
        except Exception as error:
            copy.unlink(missing_ok=True)
            reason = explain(error, source.url)
            if not reason.transient:
                return replace(source, problem=str(reason))
        else:
            return replace(source, local=copy)
    return replace(source, problem=f"{reason}, after {ATTEMPTS} attempts")


def _fetch_once(url: str, copy: Path, limit: int) -> None:
    system, path = _open_system(url)
    found = system.info(path)
    size = found.get("size")
    if found.get("type") == "directory":
        raise FetchError("it is a folder, not a file")
    if size is None:
        raise FetchError("the server does not report its size, so an incomplete transfer would go unnoticed")
    if size > limit:
        raise FetchError(f"it has {size} bytes, more than the limit of {limit}")
    free = free_disk_bytes(copy.parent)
    if size > free:
        raise FetchError(f"it has {format_bytes(size)}, but {format_bytes(free)} are free for temporary files (TMPDIR)")
    system.get_file(path, str(copy), callback=_stop_beyond(size))
    came = copy.stat().st_size if copy.exists() else 0
    if came != size:
        raise FetchError(f"the transfer broke off after {came} of {size} bytes", transient=True)


def _stop_beyond(size: int) -> Any:
    """A callback that ends a transfer of more bytes than announced before it fills the disk."""
    from fsspec.callbacks import Callback

    def watch(_: int | None, came: int) -> None:
        if came > size:
            raise FetchError(f"more than the announced {size} bytes arrived", transient=True)

    return Callback(hooks={"watch": watch})


def _open_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. fsspec keeps connections for the next file."""
    import fsspec

    scheme = urlsplit(url).scheme  # in lower case, as fsspec knows it
    url = scheme + url[len(scheme) :]
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        # Signatures hold for the address as written; and a .nii.gz is wanted as stored, not decompressed on the way.
        client = {"timeout": timeout, "auto_decompress": False, "trace_configs": [_stay_on_host()]}
        options |= {"encoded": True, "client_kwargs": client}
        options |= {"headers": {"Accept-Encoding": "identity"}}
        url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    elif scheme == "s3":
        limits = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S, "retries": {"total_max_attempts": 1}}
        options |= {"config_kwargs": limits}
    elif scheme == "gs":
        options |= {"requests_timeout": READ_TIMEOUT_S}
    system = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        system.retries = 2  # within each attempt of ours; its own 5 would take minutes
    return system, system._strip_protocol(url)  # not url_to_fs, for which "::" in a name chains another file system


@functools.cache
def _stay_on_host() -> Any:
    """Ends a request that is redirected to another host, or port, or from ``https`` to ``http``: nobody named that.

    One for all connections, since fsspec keeps those whose options are the same.
    """
    import aiohttp

    async def look(_: Any, __: Any, request: Any) -> None:
        here, headers = request.url, request.response.headers
        there = here.join(type(here)(headers.get("Location") or headers.get("URI") or ""))
        upgraded = (here.scheme, here.explicit_port, there.scheme, there.port) == ("http", None, "https", 443)
        if there.host != here.host or not (upgraded or (there.scheme, there.port) == (here.scheme, here.port)):
            raise FetchError(f"the server redirects to another one, {there.scheme}://{there.host}: name its address instead")

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(look)
    return config


def explain(error: BaseException, url: str) -> FetchError:
    """What a library's error for a URL means, without any of its text."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    known = next((link for link in chain if isinstance(link, FetchError)), None)
    if known:
        return known
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    # aiohttp calls the status "status", and deprecates "code", which is gcsfs' name for it
    found = (getattr(link, "status" if hasattr(link, "status") else "code", None) for link in chain)
    status = next((status for status in found if isinstance(status, int) and 400 <= status < 600), None)
    if status in (401, 403):
        names.add(_DENIED)
    words = {"credentials": _SCHEMES[urlsplit(url).scheme][1], "connect": CONNECT_TIMEOUT_S, "read": READ_TIMEOUT_S}
    for types, sentence, transient in _REASONS:
        if any(re.fullmatch(types, name) for name in names):
            return FetchError(sentence.format_map(words), transient=transient)
    if status is not None and status not in (404, 410):
        return FetchError(f"the server answered with status {status}", transient=status >= 500 or status == 429)
    if "FileNotFoundError" in names:
        return FetchError("there is no such bucket, folder or object")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return FetchError("no space is left for temporary files (TMPDIR)")
    return FetchError(f"the transfer failed ({type(error).__name__})", transient=isinstance(error, OSError))
