"""What a case is before it is computed: its images and masks, which threads make side by side, and what breaks."""

import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cascade_config, paper_config, write_dataset, write_nifti
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.timing import StageTimer
from mcbo.core.types import Mask, Volume
from mcbo.dataset.learn2reg import Case, open_input
from mcbo.geometry.mask import field_of_view
from mcbo.io.nifti import Image, read_image
from mcbo.methods.config import Preset
from mcbo.methods.memory_model import MASK_BYTES, image_bytes
from mcbo.methods.pipeline import register
from mcbo.runs import load as load_module
from mcbo.runs import options as options_module
from mcbo.runs.case import CaseRun
from mcbo.runs.load import load, reading_threads
from mcbo.runs.options import Options, Setup
from mcbo.runtime import select_kernels
from mcbo.steps.mind import scale_to_one
from mcbo.studies.phantom import make_phantom

SHAPE = (24, 28, 32)
NAMES = ["disp_0001_0000_0001_0001", "disp_0001_0000_0001_0002"]
PATIENCE_S = 60.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One case with two modalities; the fixed image is a wedge, and the second moving image has no background."""
    phantom = make_phantom(SHAPE, seed=3, wedge=True)
    for channel, image in enumerate((phantom.fixed, phantom.cet1, 1 + phantom.t2 + phantom.fixed.max() * (phantom.t2 == 0))):
        write_nifti(tmp_path / "imagesTr" / f"ReMIND2Reg_0001_000{channel}.nii.gz", image[0, 0].numpy())
    write_dataset(tmp_path, [("ReMIND2Reg_0001_0000.nii.gz", f"ReMIND2Reg_0001_000{channel}.nii.gz") for channel in (1, 2)])
    return tmp_path


def image_file(data: Path, channel: int) -> Path:
    return data / "imagesTr" / f"ReMIND2Reg_0001_000{channel}.nii.gz"


def the_case(data: Path) -> Case:
    (case,) = open_input(data, split="val").cases
    return case


def loaded(data: Path, config: Preset | None = None, *, device: str = "cpu", **more: Any) -> tuple[CaseRun, StageTimer]:
    timer = StageTimer()
    setup = Setup(config or cascade_config(), Options(data / "out"), torch.device(device))
    return load(the_case(data), setup, earlier=[], timer=timer, **more), timer


def test_images_and_masks_are_there_in_the_order_of_the_pairs(data: Path) -> None:
    run, timer = loaded(data)
    assert run.fixed is not None
    assert run.masks is not None
    assert list(run.movings) == NAMES
    images = [read_image(image_file(data, channel)).volume for channel in range(3)]
    assert torch.equal(run.fixed.volume, images[0])
    for volume, mask, found in zip(
        images, (run.masks.fixed, *run.masks.movings), (run.fixed, *run.movings.values()), strict=True
    ):
        assert torch.equal(found.volume, volume)
        assert torch.equal(mask, field_of_view(scale_to_one(volume)))  # as the method itself does it
    assert not run.masks.fixed.all()
    assert list(timer.records) == ["read", "masks"]


def test_a_preset_without_masks_gets_none(data: Path) -> None:
    run, timer = loaded(data, paper_config())
    assert run.masks is None
    assert list(timer.records) == ["read"]


def test_the_result_is_the_one_of_masks_that_the_method_finds(data: Path) -> None:
    run, _ = loaded(data)
    assert run.fixed is not None
    fields = [
        register(
            run.fixed.volume,
            [image.volume for image in run.movings.values()],
            spacing_mm=(1.0, 1.0, 1.0),
            config=cascade_config(),
            kernels=select_kernels(torch.device("cpu")),
            budget_bytes=10**10,
            timer=StageTimer(),
            masks=masks,
        ).displacements[0]
        for masks in (run.masks, None)
    ]
    assert torch.equal(*fields)


def test_a_mask_is_made_while_another_image_is_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masked = threading.Event()

    def reading(path: Path) -> Image:
        assert path == image_file(data, 0) or masked.wait(PATIENCE_S), "no mask was made meanwhile"
        return read_image(path)

    def masking(volume: Volume) -> Mask:
        masked.set()
        return field_of_view(volume)

    monkeypatch.setattr(load_module, "read_image", reading)
    monkeypatch.setattr(load_module, "field_of_view", masking)
    assert list(loaded(data)[0].movings) == NAMES
    masked.clear()
    with reading_threads() as threads:
        assert list(loaded(data, threads=threads)[0].movings) == NAMES


@pytest.mark.parametrize("broken", [1, 2])
def test_a_broken_moving_image_takes_neither_the_other_nor_its_mask_along(data: Path, broken: int) -> None:
    image_file(data, broken).write_bytes(b"no image")
    run, _ = loaded(data)
    there = 3 - broken
    assert list(run.movings) == [NAMES[there - 1]]
    assert list(run.result.failed) == [NAMES[broken - 1]]
    assert run.masks is not None
    (mask,) = run.masks.movings
    assert torch.equal(mask, field_of_view(read_image(image_file(data, there)).volume))
    assert [text for _, text in run.result.messages] == [
        f"case 0001 continues without this image: {run.result.failed[NAMES[broken - 1]]}"
    ]


def test_messages_come_in_the_order_of_the_images(data: Path) -> None:
    image_file(data, 1).write_bytes(image_file(data, 1).read_bytes()[:5000])  # known at its end
    write_nifti(image_file(data, 2), np.ones((3, 4, 5), np.float32))  # known at once
    run, _ = loaded(data)
    assert run.fixed is None
    assert run.masks is None
    assert list(run.result.failed) == NAMES
    cut, other = run.result.failed.values()
    assert cut.startswith(f"{image_file(data, 1)}: expected a whole NIfTI image, but it cannot be read")
    assert other == (
        f"{image_file(data, 2)}: expected the shape of the fixed image {image_file(data, 0).name}, 24×28×32, found 3×4×5"
    )


def test_nothing_goes_on_after_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    def reading(path: Path) -> Image:
        if path == image_file(data, 0):
            assert begun.wait(PATIENCE_S)
            raise InputError("a broken fixed image")
        begun.set()
        time.sleep(0.2)
        ended.set()
        return read_image(path)

    monkeypatch.setattr(load_module, "read_image", reading)
    with reading_threads() as threads:
        run, _ = loaded(data, threads=threads)
        assert ended.is_set()
    assert run.fixed is None
    assert run.result.failed == dict.fromkeys(NAMES, "a broken fixed image")


def test_for_a_gpu_the_host_is_asked_for_memory_and_the_gpu_is_not_waited_for(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_now(*_: object) -> None:
        raise AssertionError("the kernels may still be in the making")

    monkeypatch.setattr(options_module, "ready_kernels", not_now)
    run, _ = loaded(data, device="cuda")
    assert list(run.movings) == NAMES
    needed = image_bytes(SHAPE, movings=2, masks=True)
    monkeypatch.setattr(load_module, "budget_bytes", lambda *_: needed)
    assert loaded(data, device="cuda")[0].fixed is not None
    monkeypatch.setattr(load_module, "budget_bytes", lambda *_: needed - 1)
    run, _ = loaded(data, device="cuda")
    assert run.fixed is None
    assert not run.result.started
    assert "24×28×32 voxels with 2 moving image(s) take 516 kB of the host's memory to be read" in run.result.failed[NAMES[0]]


def test_masks_need_no_more_memory_than_the_model_says() -> None:
    def peak(volume: Tensor) -> int:
        tracemalloc.start()
        try:
            field_of_view(volume)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    shape = (96, 100, 104)
    volume = torch.where(make_phantom(shape, wedge=True).fixed > 0, 1.0, 0.0)
    assert peak(volume) < MASK_BYTES * volume.numel()
    with_masks, without = (image_bytes(shape, movings=2, masks=masks) for masks in (True, False))
    assert with_masks - without == 3 * MASK_BYTES * volume.numel()
