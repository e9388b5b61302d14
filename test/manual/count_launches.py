"""Counts what a GPU would be told in one case, without a GPU: kernel launches, host synchronizations, copies.

``count_launches.py DATASET.json PRESET [CASE [GB]]`` registers a case with the CUDA kernels, compiled as C++ and
run on the CPU, on tensors that count the operations of torch. It takes minutes; times mean nothing, the displacement is right.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "support")]

from counted_device import counted_device  # noqa: E402
from cuda_on_cpu import OnCpu, counting  # noqa: E402

from mcbo.core.timing import StageTimer  # noqa: E402
from mcbo.dataset.learn2reg import open_input  # noqa: E402
from mcbo.geometry.grid import voxel_size_mm  # noqa: E402
from mcbo.io.nifti import read_image  # noqa: E402
from mcbo.kernels.cuda import make_kernels  # noqa: E402
from mcbo.methods.pipeline import register  # noqa: E402
from mcbo.methods.presets import find_config  # noqa: E402


def main(dataset: str, preset: str, number: str = "1", memory_gb: str = "8") -> None:
    """Prints the counts of a case, and by which functions it is told most."""
    data = open_input(Path(dataset), split="val")
    case = data.cases[int(number) - 1]
    fixed, movings = read_image(case.fixed), [read_image(pair.moving) for pair in case.pairs]
    with tempfile.TemporaryDirectory() as folder, counted_device() as counts:
        kernels = OnCpu(Path(folder))
        start = time.perf_counter()
        timer = StageTimer(wait=counts.sync)
        result = register(
            counts.to_device(fixed.volume),
            [counts.to_device(image.volume) for image in movings],
            spacing_mm=voxel_size_mm(fixed.affine),
            config=find_config("ReMIND2Reg", preset),
            kernels=make_kernels(counting(kernels, counts)),
            budget_bytes=int(float(memory_gb) * 1e9),
            timer=timer,
        )
        seconds = time.perf_counter() - start
    print(f"{preset}, {case.name}: {counts.launches} launches, {counts.syncs} synchronizations, {counts.copies} copies")
    print(f"({counts.waiting_copies} of them waited for); {seconds:.0f} s on the CPU; {[j.summary for j in result.judgements]}")
    ours: Counter[str] = Counter(kernels.launches)
    for title, counter in (
        ("launches by caller", counts.launches_at),
        ("synchronizations by caller", counts.syncs_at),
        ("copies by caller", counts.copies_at),
        ("operations", counts.by_operation),
        ("own kernels", ours),
    ):
        print(f"\n{title}")
        for name, count in counter.most_common(25):
            print(f"  {count:7} {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
