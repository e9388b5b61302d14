"""CUDA C++ to binaries at run time: NVIDIA's NVRTC, called through ``cuda-core``.

Why cuda-core: Triton needs a C compiler at run time, which neither the image nor every user has; CuPy would be 100 MB more for
the same call of NVRTC; torch's own ``_compile_kernel`` is private, and hands a Python float over as a double.

What has to be installed: torch 2.13.0 for CUDA 13, the default index's, brings cuda-bindings 13, cuda-pathfinder and
nvidia-cuda-nvrtc 13.0.88. Builds for CUDA 12 bring cuda-bindings 12.9.4 and nvidia-cuda-nvrtc-cu12, judging by torch 2.10.0;
those of 2.13.0 are on PyTorch's own index and were not looked at. So only cuda-core is missing: 6.5 MB to download, 18 MB
installed; one package serves both, by the major version of cuda-bindings. Without a GPU it is never imported.

Binaries and not PTX are made, since a driver that is older than NVRTC within one major version takes only these.
"""

import re
from pathlib import Path
from typing import Any

import torch

from mcbo.core.errors import KernelError
from mcbo.kernels.cuda.launch import Module

SOURCES = Path(__file__).parent
"""Where modules and the headers that they include lie."""

_CUDA = (torch.version.cuda or "13").partition(".")[0]
"""Major version of torch's CUDA: packages for another one are of no use."""


def options_of(module: Module) -> dict[str, Any]:
    """How NVRTC compiles a module, apart from architecture and folders: keywords of ``cuda.core.ProgramOptions``.

    With the constant ``EXACT`` set to 1, multiplications and additions are rounded one by one, as on the CPU.
    """
    options: dict[str, Any] = {"std": "c++17"}
    if module.constants:  # an empty list is refused
        options["define_macro"] = [(name, str(value)) for name, value in module.constants]
    if ("EXACT", 1) in module.constants:
        options["fma"] = False
    return options


def compile_module(module: Module, architecture: str) -> bytes:
    """The binary (cubin) of a module for an architecture such as ``sm_90``; needs no GPU, and runs well in threads.

    Raises:
        KernelError: if the compiler is missing, does not know the architecture, or refuses the source.
    """
    core, version = cuda_core(), compiler_version()
    if architecture not in known_architectures():
        raise KernelError(
            f"the CUDA compiler: expected an NVRTC that knows {architecture}, found {version}: "
            "install a build of torch for this GPU, which brings one"
        )
    source = (SOURCES / module.file).read_text()
    options = core.ProgramOptions(name=module.file, arch=architecture, include_path=[str(SOURCES)], **options_of(module))
    try:
        return bytes(core.Program(source, "c++", options).compile("cubin").code)
    except Exception as error:  # cuda-core's own have no other public base
        raise KernelError(
            f"{module.file}: NVRTC {version} does not compile it for {architecture}: {_first_error(str(error))}"
        ) from error


def _first_error(log: str) -> str:
    """The line of a compiler's log that says what is wrong."""
    lines = [line.strip() for line in log.replace("\0", "").splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror: ", line)), lines[0] if lines else "no reason given")


def cuda_core() -> Any:
    """The library ``cuda.core``; ``KernelError`` if it, or what it needs, is not installed."""
    try:
        import cuda.core
    except ImportError as error:
        if error.name in ("cuda", "cuda.core") and isinstance(error, ModuleNotFoundError):
            raise KernelError(
                "the package cuda-core: expected to find it, it is not installed: pip install cuda-core"
            ) from error
        raise KernelError(
            f"the package cuda-core: expected beside it cuda-bindings {_CUDA}, as torch for CUDA {_CUDA} brings it, "
            f"found none that can be imported ({error}): pip install 'cuda-bindings=={_CUDA}.*'"
        ) from error
    return cuda.core


def compiler_version() -> str:
    """The version of NVRTC, such as ``13.0``; ``KernelError`` if there is none."""
    return ".".join(map(str, _ask("nvrtcVersion")))


def known_architectures() -> list[str]:
    """What NVRTC compiles for, such as ``sm_90``."""
    (numbers,) = _ask("nvrtcGetSupportedArchs")
    return [f"sm_{number}" for number in numbers]


def _ask(function: str) -> tuple[Any, ...]:
    """What a function of NVRTC without arguments answers."""
    cuda_core()  # says what is missing
    from cuda.bindings import nvrtc

    try:
        status, *answer = getattr(nvrtc, function)()
    except RuntimeError as error:  # the library is loaded by the first call
        package = "nvidia-cuda-nvrtc" + ("-cu12" if _CUDA == "12" else "")
        raise KernelError(
            f"the CUDA compiler: expected NVRTC, the library libnvrtc.so.{_CUDA}, found none: pip install {package}"
        ) from error
    if int(status):
        raise KernelError(f"the CUDA compiler: expected an answer to {function}, found {status!r}")
    return tuple(answer)
