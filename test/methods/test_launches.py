"""What a GPU is asked to do, counted on a stand-in (``counted_device.py``)."""

from dataclasses import replace

import pytest
import torch
from counted_device import counted_device
from cuda_on_cpu import OnCpu, counting
from helpers import cascade_config, paper_config, random_tensor, run_register

from mcbo.geometry.mask import bounding_box, field_of_view, fill_outside
from mcbo.kernels import REFERENCE
from mcbo.kernels.cuda import make_kernels
from mcbo.methods.config import Preset
from mcbo.methods.quality import examine
from mcbo.steps.initialization import Coarse
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
    """Of the default but for the number of searches and rotations, which would only repeat the same operations."""
    config = cascade_config()
    assert config.start
    overview = replace(config.hypotheses.overview, rounds=1)
    hypotheses = replace(config.hypotheses, mirrors=((0,), (1,), (2,)), overview=overview)
    config = replace(config, hypotheses=hypotheses, start=replace(config.start, max_degrees=10.0))
    kernels = replace(REFERENCE, batch=64)
    phantom = make_phantom((28, 24, 32), seed=7)
    images = (phantom.fixed, phantom.cet1, phantom.t2)
    expected = run_register(images[0], images[1:], config, kernels=kernels).displacements[0]
    with counted_device() as counts:
        fixed, *movings = (counts.to_device(image) for image in images)
        found = run_register(fixed, movings, config, kernels=kernels).displacements[0]
        assert torch.equal(counts.unwrap(found), expected)
    assert expected.any()


def test_the_start_waits_once_for_each_batch() -> None:
    """At most 10 batches: all rotations, and 9 rounds of the pattern search; and 4 times for masks."""
    settings = cascade_config().start
    assert settings
    phantom = make_phantom((40, 28, 52), seed=3, wedge=True)
    images = (phantom.fixed, phantom.cet1, phantom.t2)
    with counted_device() as counts:
        fixed, *movings = (counts.to_device(image) for image in images)
        known, *masks = (counts.to_device(field_of_view(image)) for image in images)
        kernels = replace(REFERENCE, batch=64)
        coarse = Coarse(fixed, known, movings, masks, spacing_mm=(1.0, 1.0, 1.0), size=settings.cells, kernels=kernels)
        coarse.best_poses(settings)
    features = sum(times for place, times in counts.launches_at.items() if place.startswith("mind.py"))
    assert counts.launches - features < 1250
    assert counts.syncs <= 14
    assert counts.waiting_copies == 0


def test_masks_wait_once_or_twice() -> None:
    phantom = make_phantom((24, 28, 20), seed=3, wedge=True)
    with counted_device() as counts:
        image, mask = counts.to_device(phantom.fixed), counts.to_device(phantom.fixed > 0)
        fill_outside(image, mask, reach=3)
        assert counts.syncs == 1
        bounding_box(mask, margin=2)
        assert counts.syncs == 2


def test_the_sanity_check_waits_for_figures_only() -> None:
    """Per result: finite, folds, range, distances before and after. Per image: its field of view and whether to fill it."""
    phantom = make_phantom((64, 56, 72), seed=3)
    with counted_device() as counts:
        movings = {name: counts.to_device(image) for name, image in (("a", phantom.cet1), ("b", phantom.t2))}
        displacement = counts.to_device(phantom.displacement)
        found = examine(
            counts.to_device(phantom.fixed),
            movings,
            dict.fromkeys(movings, displacement),
            config=cascade_config(),
            kernels=replace(REFERENCE, batch=64),
        )
    assert found["a"].distance_after < found["a"].distance_before
    assert counts.syncs <= 3 + 2 * 2 + 3 * 2
    features = sum(times for place, times in counts.launches_at.items() if place.startswith("mind.py"))
    assert counts.launches - features < 800


@pytest.mark.parametrize("config", [paper_config(), cascade_config()], ids=["mcbo2024", "cascade"])
def test_a_gpu_is_told_little(cuda_on_cpu: OnCpu, config: Preset) -> None:
    """Before the kernels in CUDA, ``cascade`` took 372,000 launches and 3,400 synchronizations."""
    phantom = make_phantom((26, 22, 30), seed=3, wedge=True)
    with counted_device() as counts:
        fixed, *movings = (counts.to_device(image) for image in (phantom.fixed, phantom.cet1, phantom.t2))
        run_register(fixed, movings, config, kernels=make_kernels(counting(cuda_on_cpu, counts)))
    print(f"{counts.launches} launches, {counts.syncs} synchronizations, {counts.waiting_copies} copies waited for")
    assert counts.launches < 15_000
    assert counts.syncs + counts.waiting_copies < 300
