"""What several tests need."""

import hashlib
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Kernels, Shape
from mcbo.io.files import digest
from mcbo.io.nifti import read_displacement
from mcbo.kernels import REFERENCE
from mcbo.methods.cascade import CascadeConfig
from mcbo.methods.config import Preset, Registration
from mcbo.methods.multilevel import MultilevelConfig
from mcbo.methods.pipeline import register
from mcbo.methods.presets import find_config
from mcbo.runtime import select_kernels
from mcbo.studies.phantom import make_phantom

TOLERANCE = {
    "rounding": 1e-5,  # float32, a few additions
    "device": 1e-4,  # the same step on another device
    "field": 0.05,  # voxels, where ties and the order of additions may decide a cell
}

TURNS = st.tuples(st.permutations((0, 1, 2)), st.sets(st.integers(0, 2)).map(sorted))
"""For ``turned``: an order of the axes, and which are reversed. There are 48, and a method must not care."""


def fields(out: Path) -> dict[str, str]:
    """What each displacement of a folder is: of its bytes and of its voxels a digest, and the sum of its magnitudes.

    So a comparison that fails says whether only the compression differs, and by how much else.
    """
    return {path.name: _told(path) for path in sorted(out.glob("disp_*"))}


def _told(path: Path) -> str:
    voxels = read_displacement(path).numpy()
    total = np.abs(voxels).sum(dtype=np.float64)
    return f"file {digest(path)}, voxels {hashlib.sha256(voxels.tobytes()).hexdigest()[:16]}, {total:.9g} in all"


def skip_unless_it_runs(kernels: Kernels, device: torch.device) -> None:
    """Skips a test if kernels cannot be used on a device: but for the reference, those of the fixture are for the CPU."""
    if kernels is not REFERENCE and device.type != "cpu":
        pytest.skip(f"the kernels {kernels.name!r} of this test are for the CPU")


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def paper_config(task: str = "ReMIND2Reg") -> MultilevelConfig:
    """The preset that reproduces the paper."""
    config = find_config(task, "mcbo2024")
    assert isinstance(config, MultilevelConfig)
    return config


def cascade_config(task: str = "ReMIND2Reg") -> CascadeConfig:
    """The default."""
    config = find_config(task, "cascade")
    assert isinstance(config, CascadeConfig)
    return config


def run_register(
    fixed: Tensor,
    movings: Sequence[Tensor],
    config: Preset | None = None,
    budget_gb: float = 4.0,
    kernels: Kernels | None = None,
) -> Registration:
    """Registers with the kernels that fit the device, unless told otherwise."""
    return register(
        fixed,
        movings,
        spacing_mm=(1.0, 1.0, 1.0),
        config=config or paper_config(),
        kernels=kernels or select_kernels(fixed.device),
        budget_bytes=int(budget_gb * 1e9),
        timer=StageTimer(),
    )


class TensorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, within its block, the bytes of all tensors that are alive, as torch makes and frees them."""

    def __init__(self, already: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._alive: dict[int, int] = {}
        for tensor in already:
            self._watch(tensor)

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
            weakref.finalize(storage, self._alive.pop, key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._watch(value)
        return result


def mean_length(displacement: Displacement) -> float:
    return float(displacement.norm(dim=1).mean())


def constant_field(vector: Sequence[float], shape: Shape) -> Displacement:
    return torch.tensor(vector, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *shape).clone()


def turned(tensor: Tensor, axes: Sequence[int], flipped: Sequence[int]) -> Tensor:
    """A volume with its last three axes in another order, and then some of them reversed."""
    lead = tensor.dim() - 3
    moved = tensor.permute(*range(lead), *(lead + axis for axis in axes))
    return moved.flip([lead + axis for axis in flipped]).contiguous()


def turned_field(displacement: Displacement, axes: Sequence[int], flipped: Sequence[int]) -> Displacement:
    """A displacement turned as a volume is, its vectors with it."""
    result = turned(displacement, axes, flipped)[:, list(axes)]
    result[:, list(flipped)] *= -1
    return result


def write_nifti(path: Path, array: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def write_phantoms(folder: Path, cases: Sequence[str], shape: Shape) -> Path:
    """A dataset of phantoms: per case a fixed and a moving image; the case is the seed. Returns its folder."""
    for case in cases:
        phantom = make_phantom(shape, seed=int(case))
        for channel, image in enumerate((phantom.fixed, phantom.cet1)):
            write_nifti(folder / "imagesTr" / f"ReMIND2Reg_{case}_000{channel}.nii.gz", image[0, 0].numpy().astype(np.int16))
    write_dataset(folder, [(f"ReMIND2Reg_{case}_0000.nii.gz", f"ReMIND2Reg_{case}_0001.nii.gz") for case in cases])
    return folder


def write_dataset(folder: Path, pairs: Sequence[tuple[str, str]], *, name: str = "ReMIND2Reg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"fixed": f"./imagesTr/{fixed}", "moving": f"./imagesTr/{moving}"} for fixed, moving in pairs]
    path = folder / f"{name}_dataset.json"
    path.write_text(json.dumps({"name": name, "registration_val": entries}))
    return path
