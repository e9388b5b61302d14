"""A stand-in for a GPU on a machine without one, which counts what a GPU would have to be told.

Its tensors say that they are on ``cuda:0`` and refuse to be mixed with those of the CPU; what is computed with them is computed
on the CPU. An operation of torch counts as one launch unless ``_LAUNCHES`` says otherwise (some of the others launch two or
three kernels on a real GPU). Times mean nothing.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("cuda:0")
_CUDA, _META = 1, 14
"""Torch's numbers of kinds of devices."""
_FREE = {"alias", "detach", "lift_fresh", "_local_scalar_dense", "_reshape_alias", "_unsafe_view"}
_FREE |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"}
"""Operations that launch nothing, besides views."""
_LAUNCHES = {"_fft_r2c": 3, "_fft_c2r": 3, "_fft_c2c": 3}
"""Operations that launch more than one kernel."""
_SYNCS = {"_linalg_svd", "_local_scalar_dense", "bincount", "equal", "masked_select", "nonzero"}
_SYNCS |= {"unique_consecutive", "unique_dim", "_unique", "_unique2"}
"""Operations whose result, or its shape, the host has to wait for."""
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Counts:
    """What was asked of the device.

    Attributes:
        launches: of kernels.
        syncs: how often the host waited for a result.
        copies: from the host to the device.
        waiting_copies: those among them that torch waits for, because they are not ``non_blocking``.
        by_operation: launches by the name of the operation.
        launches_at, syncs_at, copies_at: by the function of the package that asked, such as ``mind.py:mind_ssc``.
    """

    launches: int = 0
    syncs: int = 0
    copies: int = 0
    waiting_copies: int = 0
    by_operation: Counter[str] = field(default_factory=Counter)
    launches_at: Counter[str] = field(default_factory=Counter)
    syncs_at: Counter[str] = field(default_factory=Counter)
    copies_at: Counter[str] = field(default_factory=Counter)

    def to_device(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU, on the device; the memory is the same. Not counted."""
        return CountedTensor(tensor, self)

    def unwrap(self, tensor: Tensor) -> Tensor:
        """The CPU tensor behind one on the device, for kernels that are not torch's. Not counted."""
        return tensor.behind if isinstance(tensor, CountedTensor) else tensor

    def launch(self, name: str, *, times: int = 1) -> None:
        """Counts launches, such as those of kernels that are not torch's."""
        self.launches += times
        self.by_operation[name] += times
        self.launches_at[_caller()] += times

    def sync(self) -> None:
        """Counts a synchronization."""
        self.syncs += 1
        self.syncs_at[_caller()] += 1

    def copy(self, *, waits: bool) -> None:
        """Counts a copy to the device."""
        self.copies += 1
        self.waiting_copies += waits
        self.copies_at[_caller()] += 1


class CountedTensor(Tensor):
    """A tensor on the device; ``behind`` is its memory on the CPU."""

    behind: Tensor
    counts: Counts

    @staticmethod
    def __new__(cls, behind: Tensor, counts: Counts) -> "CountedTensor":
        tensor: CountedTensor = Tensor._make_wrapper_subclass(
            cls,
            behind.size(),
            strides=behind.stride(),
            storage_offset=behind.storage_offset(),
            dtype=behind.dtype,
            device=DEVICE,
        )
        tensor.behind, tensor.counts = behind, counts
        return tensor

    def tolist(self) -> Any:  # torch refuses it for classes of their own
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        counts = next(t.counts for t in _tensors((*args, *kwargs.values())) if isinstance(t, CountedTensor))
        return _run(func, args, kwargs, counts)


@contextmanager
def counted_device() -> Iterator[Counts]:
    """Within the block, there is a GPU; yields its counts."""
    counts = Counts()
    before = torch._C._only_lift_cpu_tensors()
    with _guard(), _Factories(counts):
        torch._C._set_only_lift_cpu_tensors(True)  # else ``tensor`` copies unseen
        try:
            yield counts
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


@contextmanager
def _guard() -> Iterator[None]:
    """Lets ``item`` and others switch to a GPU, which builds of torch for the CPU refuse: as to ``meta``, by doing nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


class _Factories(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Catches the operations that make a tensor on the device, or copy one there; the others find ``CountedTensor``."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # else torch looks for a real GPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "cpu":
            return func(*args, **kwargs)
        return _run(func, args, kwargs, self._counts)


def _run(func: Any, args: Any, kwargs: Any, counts: Counts) -> Any:
    """Runs an operation of the device on the CPU, and counts it."""
    name = func.overloadpacket.__name__
    tensors = list(_tensors((*args, *kwargs.values())))
    to_host = name == "copy_" and not isinstance(args[0], CountedTensor)
    if kwargs.get("device") is not None:
        to_host = torch.device(kwargs["device"]).type == "cpu"
        kwargs = kwargs | {"device": "cpu"}
    if to_host:
        counts.sync()
    else:
        _count(name, func, args, kwargs, [t for t in tensors if not isinstance(t, CountedTensor)], counts)
    same = {id(counts.unwrap(t)): t for t in tensors}
    result = func(*_unwrapped(args), **_unwrapped(kwargs))

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or to_host:
            return value
        return same[id(value)] if id(value) in same else CountedTensor(value.resolve_conj(), counts)  # a lazy one would be lost

    return wrapped(result) if isinstance(result, Tensor) else tree_map(wrapped, result)


def _count(name: str, func: Any, args: Any, kwargs: Any, hosts: list[Tensor], counts: Counts) -> None:
    """Counts an operation on the device; ``hosts`` are those of its arguments that lie on the CPU."""
    if name in ("copy_", "_to_copy") and hosts:
        counts.copy(waits=not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])))
        return
    if name in _INDEXING:
        indices = list(_tensors(args[1]))
        fills = name != "index" and args[2].numel() == 1  # then a mask need not become a list of places
        if any(index.dtype == torch.bool for index in indices) and not fills:
            counts.sync()
        for index in indices:
            if not isinstance(index, CountedTensor):
                counts.copy(waits=True)
    elif any(host.dim() for host in hosts):
        raise RuntimeError(f"{name}: expected all tensors on {DEVICE}, got one of shape {tuple(hosts[0].shape)} on the CPU")
    if name in _SYNCS:
        counts.sync()
    if name == "_conj" or not (func.is_view or name in _FREE):
        counts.launch(name, times=_LAUNCHES.get(name, 1))


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments, which may be lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _unwrapped(value: Any) -> Any:
    if isinstance(value, CountedTensor):
        return value.behind
    if isinstance(value, dict):
        return {key: _unwrapped(one) for key, one in value.items()}
    return type(value)(map(_unwrapped, value)) if isinstance(value, list | tuple) else value


def _caller() -> str:
    """The innermost function of the package that runs: file and name."""
    frame = sys._getframe(1)
    while frame.f_back and "mcbo" not in frame.f_globals.get("__name__", "").split(".")[:1]:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_name}"
