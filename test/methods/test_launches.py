"""What a GPU is asked to do, counted on a stand-in (``counted_device.py``)."""

from dataclasses import replace

import pytest
import torch
from counted_device import counted_device
from cuda_on_cpu import OnCpu, counting
from helpers import cascade_config, paper_config, random_tensor, run_register

from mcbo.kernels import REFERENCE
from mcbo.kernels.cuda import make_kernels
from mcbo.methods.config import Preset
from mcbo.studies.phantom import make_phantom


def test_counts_by_hand() -> None:
    with counted_device() as counts:
        x = counts.to_device(torch.arange(24.0).view(2, 3, 4))

        def told() -> tuple[int, int, int]:
            return counts.launches, counts.syncs, counts.copies

        assert x.device.type == torch.zeros(2, device=x.device).device.type == "cuda"
        assert told() == (1, 0, 0)
        x[0] += 1
        assert torch.equal(counts.unwrap(x)[0, 0], torch.arange(1.0, 5))
        assert torch.empty_like(x).movedim(0, 2).shape == (3, 4, 2)
        assert told() == (3, 0, 0)  # the sum, and its assignment to x[0], a copy
        assert float(x.max()) == 23
        assert x[0, 0].tolist() == [1, 2, 3, 4]
        assert x.cpu().sum() == 24 * 23 / 2 + 12
        assert told() == (4, 3, 0)
        assert x[x > 20].shape == (3,)
        x[x > 20] = 0
        assert told() == (8, 4, 0)
        torch.tensor([1.0, 2.0], device=x.device)
        torch.ones(3).to(x.device, non_blocking=True)
        assert (*told(), counts.waiting_copies) == (8, 4, 2, 1)
        with pytest.raises(RuntimeError, match=r"add: expected all tensors on cuda:0, got one of shape \(4,\) on the CPU"):
            x + torch.ones(4)
        assert counts.by_operation["gt"] == 2
    assert torch.zeros(2).device.type == "cpu"


def test_conjugates_are_not_lost() -> None:
    x = torch.complex(random_tensor(3, 4), random_tensor(3, 4, seed=1))
    with counted_device() as counts:
        y = counts.to_device(x)
        assert torch.equal(counts.unwrap(y.conj()[1:] * y[1:]), x.conj()[1:] * x[1:])


def test_a_whole_registration_is_that_of_the_cpu() -> None:
    phantom = make_phantom((32, 28, 40), seed=3, wedge=True)
    images = (phantom.fixed, phantom.cet1, phantom.t2)
    expected = run_register(images[0], images[1:], cascade_config(), kernels=REFERENCE).displacements[0]
    with counted_device() as counts:
        fixed, *movings = (counts.to_device(image) for image in images)
        found = run_register(fixed, movings, cascade_config(), kernels=REFERENCE).displacements[0]
        assert torch.equal(counts.unwrap(found), expected)


WITHOUT_START = replace(cascade_config(), start=None)
"""The search for a start takes a few launches for each of its candidates, one by one: it is not within the bounds yet."""


@pytest.mark.parametrize("config", [paper_config(), WITHOUT_START], ids=["mcbo2024", "cascade"])
def test_a_gpu_is_told_little(cuda_on_cpu: OnCpu, config: Preset) -> None:
    """Before the kernels in CUDA, ``cascade`` took 372,000 launches and 3,400 synchronizations."""
    phantom = make_phantom((32, 30, 34), seed=3, wedge=True)
    with counted_device() as counts:
        fixed, *movings = (counts.to_device(image) for image in (phantom.fixed, phantom.cet1, phantom.t2))
        run_register(fixed, movings, config, kernels=make_kernels(counting(cuda_on_cpu, counts)))
    print(f"{counts.launches} launches, {counts.syncs} synchronizations, {counts.waiting_copies} copies waited for")
    assert counts.launches < 15_000
    assert counts.syncs + counts.waiting_copies < 300
