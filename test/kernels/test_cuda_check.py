"""The self-check of kernels passes what is right, and names what is wrong."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mcbo.core.errors import KernelError, ShapeError
from mcbo.core.field import half_pixel_stretch
from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE
from mcbo.kernels.cuda.check import SHAPE, TWINS, Sample, agree, distance

CPU = torch.device("cpu")


def test_right_kernels_agree(kernels: Kernels) -> None:
    agree(kernels, CPU)


def test_every_kernel_is_compared() -> None:
    computing = {field.name for field in fields(Kernels)} - {"name", "max_rows", "slab_cells", "is_ring", "at_once", "batch"}
    computing -= {"lanes", "in_batches", "in_turns", "as_slab"}
    assert {name for twin in TWINS for name in twin.name.split(", ")} == computing


def test_no_sample_falls_on_the_border_of_a_cell() -> None:
    sample = Sample.make()
    for displacement in (sample.forward, sample.backward):
        for u in (displacement, half_pixel_stretch(displacement)):
            assert ((u - u.round()).abs() > 0.1).all()


def test_the_distance_is_a_share_of_the_largest_value() -> None:
    assert distance(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0])) == 0.25
    assert distance(torch.tensor([1.0]), torch.tensor([1.0, 1.0])) == float("inf")


def changed(name: str, change: Callable[[Any], Any]) -> Kernels:
    """The reference, with another result of one kernel."""
    right = getattr(REFERENCE, name)
    kernel: Any = lambda *arguments, **options: change(right(*arguments, **options))  # noqa: E731
    return replace(REFERENCE, **{name: kernel})


def at_one_cell(tensor: Tensor) -> Tensor:
    """A thousandth of the largest value off, in the last corner alone."""
    wrong = tensor.clone()
    wrong.view(-1)[-1] += 1e-3 * tensor.abs().max()
    return wrong


def each(change: Callable[[Tensor], Tensor]) -> Callable[[Iterator[Tensor]], Iterator[Tensor]]:
    return lambda slabs: (change(slab) for slab in slabs)


def not_a_number(tensor: Tensor) -> Tensor:
    wrong = tensor.clone()
    wrong[..., 0] = torch.nan
    return wrong


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mind_ssc", at_one_cell),
        ("mind_ssc", not_a_number),
        ("mind_ssc", lambda features: features.flip(1)),
        ("mind_ssc", lambda features: features[..., 1:]),
        ("coupled_argmin", lambda picks: picks.flip(0)),
        ("coupled_argmin", at_one_cell),
        ("coupled_argmin", torch.neg),
        ("cost_slabs", each(lambda cost: cost * 1.5)),
        ("cost_slabs", each(lambda cost: cost.flip(0))),
        ("cost_slabs", each(lambda cost: cost.roll(1, dims=1))),
        ("cost_slabs", lambda slabs: iter([next(slabs)])),
        ("make_consistent", lambda pair: (pair[0], at_one_cell(pair[1]))),
        ("make_consistent", lambda pair: (pair[1], pair[0])),
        ("gradient_of", lambda gradient: lambda u: at_one_cell(gradient(u))),
        ("gradient_of", lambda gradient: lambda u: -gradient(u)),
    ],
)
def test_a_wrong_kernel_is_named(name: str, change: Callable[[Any], Any]) -> None:
    with pytest.raises(KernelError, match=rf"^{name} fails"):
        agree(changed(name, change), CPU)


def test_the_first_of_equals_has_to_be_picked() -> None:
    """The published program's order decides 3 % of the voxels of its golden tiles."""
    pick = REFERENCE.coupled_argmin

    def last(slab: Tensor, u: Tensor | None, **options: Any) -> Tensor:
        return -pick(slab.flip(0), None if u is None else -u, **options)

    with pytest.raises(KernelError, match=r"^coupled_argmin fails the self-check on cpu: expected the reference's numbers"):
        agree(replace(REFERENCE, coupled_argmin=last), CPU)


def test_by_how_much_it_is_wrong() -> None:
    with pytest.raises(KernelError, match=re.escape("to 0.0001 of the largest, found a difference of 0.001")):
        agree(changed("mind_ssc", at_one_cell), CPU)


@pytest.mark.parametrize("value", [7.0, -7.0, 1e9, torch.nan])
def test_a_pick_that_is_no_candidate_is_an_error(value: float) -> None:
    """By costs that are right where ties are compared: the picks of the features' costs alone are wrong."""
    pick = REFERENCE.coupled_argmin

    def astray(slab: Tensor, u: Tensor | None, **options: Any) -> Tensor:
        picks = pick(slab, u, **options)
        return picks if slab.shape[1] == SHAPE[0] else picks.fill_(value)

    with pytest.raises(KernelError, match=r"^cost_slabs fails in the self-check on cpu: "):
        agree(replace(REFERENCE, coupled_argmin=astray), CPU)


@pytest.mark.parametrize(
    "error", [RuntimeError("illegal memory access\nTry this."), KernelError("no"), ShapeError("no"), KeyError(1)]
)
def test_a_kernel_that_fails_is_named(error: Exception) -> None:
    def fail(_: object) -> None:
        raise error

    with pytest.raises(KernelError, match=rf"^make_consistent fails in the self-check on cpu: {str(error).splitlines()[0]}$"):
        agree(changed("make_consistent", fail), CPU)


def test_a_lack_of_memory_is_not_the_kernels_fault() -> None:
    def fail(_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    with pytest.raises(torch.OutOfMemoryError, match="tried to allocate"):
        agree(changed("mind_ssc", fail), CPU)


@pytest.mark.gpu
def test_the_reference_agrees_with_itself_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    agree(REFERENCE, torch.device("cuda", 0))


def test_the_sample_is_small() -> None:
    sample = Sample.make()
    assert sample.volume.shape == (1, 1, *SHAPE)
    assert sum(getattr(sample, field.name).nbytes for field in fields(sample)) < 2e6
