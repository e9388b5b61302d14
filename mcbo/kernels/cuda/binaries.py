"""Compiled modules on disk, so that only the first process waits for the compiler.

Two folders: one that came with the image and is only read (``MCBO_CUDA_PREBUILT``), and a cache (``MCBO_CUDA_CACHE``, else one
for each user in the temp folder). A file's name has a digest of all that decides its content. Who can write there decides what
the GPU computes; so a cache that another user could have written to is not used.
"""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from mcbo.core.errors import OutputError
from mcbo.core.log import log
from mcbo.io.files import write_whole
from mcbo.kernels.cuda import compiler
from mcbo.kernels.cuda.launch import Module

PREBUILT = "MCBO_CUDA_PREBUILT"
CACHE = "MCBO_CUDA_CACHE"

_SEAL_BYTES = hashlib.sha256().digest_size


def obtain(module: Module, architecture: str, *, cache: Path | None) -> bytes:
    """The binary of a module: the one that came with the image, or else from the ``cache``, or else compiled and put there.

    Raises:
        KernelError: if it has to be compiled and cannot be.
    """
    shipped = os.environ.get(PREBUILT)
    if shipped:  # the image has one compiler, so its version, for which the library would have to be loaded, is not asked
        binary = read(Path(shipped) / file_name(module, architecture, compiler_version=""))
        if binary is not None:
            return binary
    name = file_name(module, architecture, compiler_version=compiler.compiler_version())
    binary = None if cache is None else read(cache / name)
    if binary is None:
        binary = compiler.compile_module(module, architecture)
        if cache is not None:
            try:
                write(cache / name, binary)
            except OutputError as error:
                log.info("%s is not cached: %s", module.file, error)
    return binary


def file_name(module: Module, architecture: str, *, compiler_version: str) -> str:
    """Such as ``cost-sm_90-0123….cubin``: of the same name is only what the same compiler makes of the same source."""
    headers = [(path.name, path.read_text()) for path in sorted(compiler.SOURCES.glob("*.cuh"))]
    source = (compiler.SOURCES / module.file).read_text()
    content = (compiler_version, architecture, sorted(compiler.options_of(module).items()), source, headers)
    return f"{Path(module.file).stem}-{architecture}-{hashlib.sha256(repr(content).encode()).hexdigest()[:32]}.cubin"


def read(path: Path) -> bytes | None:
    """The binary in a file; None if there is none, or it is not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    binary, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    return binary if binary and hashlib.sha256(binary).digest() == seal else None


def write(path: Path, binary: bytes) -> None:
    """Writes a binary and, behind it, where NVIDIA's tools do not mind it, its digest; ``OutputError`` if that fails."""
    sealed = binary + hashlib.sha256(binary).digest()
    write_whole(path, lambda partial: partial.write_bytes(sealed))


def cache_folder() -> Path | None:
    """The cache, made if need be; None, and a line in the log, if it cannot be made or others may write to it."""
    user = os.getuid()
    try:
        chosen = os.environ.get(CACHE)
        folder = Path(chosen).absolute() if chosen else Path(tempfile.gettempdir(), f"mcbo-cuda-{user}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        log.info("CUDA kernels are not cached: %s", error)
        return None
    if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return folder
    mode = stat.filemode(found.st_mode)
    log.info(
        "CUDA kernels are not cached: %s: expected a folder of user %d that nobody else may write to, found %s of user %d: "
        "set %s to another",
        *(folder, user, mode, found.st_uid, CACHE),
    )
    return None
