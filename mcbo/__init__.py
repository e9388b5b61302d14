"""MCBO: multimodal 3D image registration with multilevel correlation balanced optimization.

``mcbo.register(fixed, moving)`` registers images of any grid and returns a ``mcbo.Result``.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from mcbo._version import __version__

if TYPE_CHECKING:
    from mcbo.api.register import register
    from mcbo.api.result import Result
    from mcbo.api.transform import Transform

# Before torch is imported: threads of OpenMP that wait for each other spin for milliseconds and so keep a busy machine's cores
# from those that have work. The demo beside another run of two threads on two cores took 73 s so, 10 s without; a short
# spin is nearly as good there and costs nothing on an idle machine (2026-11-24).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["Result", "Transform", "__version__", "register"]

_LAZY = {"Result": "mcbo.api.result", "Transform": "mcbo.api.transform", "register": "mcbo.api.register"}
"""Where the public names are. They need torch, so they are imported when first asked for: the version alone costs nothing."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
