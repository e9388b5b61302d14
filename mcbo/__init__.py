"""MCBO: multimodal 3D image registration with multilevel correlation balanced optimization.

``mcbo.register(fixed, moving)`` registers images of any grid and returns a ``mcbo.Result``.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcbo.api import Result, register
    from mcbo.transform import Transform

__version__ = "0.1.0"

# Before torch is imported: threads of OpenMP that wait for each other spin for milliseconds and so keep a busy machine's cores
# from those that have work. The demo beside another run of two threads on two cores took 73 s so, 10 s without; a short
# spin is nearly as good there and costs nothing on an idle machine (2026-11-24).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["Result", "Transform", "__version__", "register"]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for, so that the version costs nothing."""
    if name in ("Result", "Transform", "register"):
        from mcbo import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
