"""Compiled modules on disk, so that only the first process waits for the compiler.

Two folders: one that came with the image and is only read (``MCBO_CUDA_PREBUILT``), and a cache (``MCBO_CUDA_CACHE``, else one
for each user in the temp folder). A file's name has a digest of all that decides its content. Who can write there decides what
the GPU computes; so a cache that another user could have written to is not used.
"""

import hashlib
import os
from pathlib import Path

from mcbo.core.errors import OutputError
from mcbo.core.log import log
from mcbo.io.files import write_whole
from mcbo.kernels.caches import complain, own_folder, sealed, temporary_folder, unsealed
from mcbo.kernels.cuda import compiler
from mcbo.kernels.cuda.launch import Module

PREBUILT = "MCBO_CUDA_PREBUILT"
CACHE = "MCBO_CUDA_CACHE"


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
        if cache is not None and (cache / name).exists():
            complain(cache, "%s: expected a compiled kernel, found a damaged file: compiled anew", cache / name)
        binary = compiler.compile_module(module, architecture)
        if cache is not None:
            try:
                write(cache / name, binary)
            except OutputError as error:
                complain(cache, "%s is not cached: %s", module.file, error)
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
        return unsealed(path.read_bytes())
    except OSError:
        return None


def write(path: Path, binary: bytes) -> None:
    """Writes a binary and, behind it, where NVIDIA's tools do not mind it, its digest; ``OutputError`` if that fails."""
    write_whole(path, lambda partial: partial.write_bytes(sealed(binary)))


def cache_folder() -> Path | None:
    """The cache, made if need be; None, and a warning, if it cannot be made or others may write to it."""
    chosen = os.environ.get(CACHE)
    try:
        return own_folder(Path(chosen).absolute() if chosen else temporary_folder("mcbo-cuda"))
    except OutputError as error:
        log.warning("CUDA kernels are not cached: %s: set %s to another", error, CACHE)
        return None
