"""Levels of x86-64 that kernels are compiled for ahead of time, so that a container that lives for one case need not compile.

Code for the very processor would be no faster (two cores, Intel Xeon, AVX-512, 2026-11-29), and of use to no other.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from mcbo.kernels.caches import complain, is_open

PREBUILT = "MCBO_CPU_PREBUILT"
LEVELS = {
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v3": ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
}
"""The features that each has beyond the lower ones, by LLVM's names; the highest first."""


def level_of(features: Mapping[str, bool]) -> str | None:
    """The highest level that a processor with these features has; None if it has none of them."""
    found = None
    for name, needed in reversed(LEVELS.items()):
        if not all(features.get(feature) for feature in needed):
            break
        found = name
    return found


def shipped_folder(level: str | None) -> Path | None:
    """Where kernels compiled ahead of time for a level are, if they are where the user, or the image, says.

    That may belong to another user, as in an image; but it is not used, and a warning says so, if others may write there.
    """
    chosen = os.environ.get(PREBUILT)
    folder = Path(chosen or "", level or "").absolute()
    if not (chosen and level and folder.is_dir()):
        return None
    if is_open(folder.stat()):
        complain(PREBUILT, "%s is not used: expected a folder that only its owner may write to, found %s", PREBUILT, folder)
        return None
    return folder
