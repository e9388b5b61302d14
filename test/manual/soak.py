"""A soak, to be run by hand: many small cases in one process, whose memory must not grow.

python test/manual/soak.py [--cases 200] [--preset cascade]
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from mcbo.dataset.folders import Folder  # noqa: E402
from mcbo.dataset.learn2reg import scan_folder  # noqa: E402
from mcbo.io.nifti import write_volume  # noqa: E402
from mcbo.methods.presets import find_config  # noqa: E402
from mcbo.runs.options import Options  # noqa: E402
from mcbo.runs.runner import run  # noqa: E402
from mcbo.studies.phantom import make_phantom  # noqa: E402

SHAPE = (32, 28, 36)
PHANTOMS = 8
LOOKED_AT = (10, 50, 100, 200)
GROWTH = 0.05


class ResidentMemory(logging.Handler):
    """Notes this process's resident memory, MB, after some of the cases."""

    def __init__(self) -> None:
        super().__init__()
        self.done = 0
        self.seen: dict[int, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not (message.startswith("case ") and ": done, " in message):
            return
        self.done += 1
        if self.done in LOOKED_AT:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.seen[self.done] = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000
            print(f"after {self.done} cases: {self.seen[self.done]:.1f} MB resident", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=LOOKED_AT[-1])
    parser.add_argument("--preset", default="cascade")
    asked = parser.parse_args()
    memory = ResidentMemory()
    logger = logging.getLogger("mcbo")
    logger.setLevel(logging.INFO)
    logger.addHandler(memory)
    with tempfile.TemporaryDirectory(prefix="mcbo-soak-") as name:
        folder = Path(name)
        phantoms = [make_phantom(SHAPE, seed=seed, wedge=seed % 2 == 1) for seed in range(PHANTOMS)]
        for case in range(asked.cases):
            phantom = phantoms[case % PHANTOMS]
            for channel, image in (("0000", phantom.fixed), ("0001", phantom.cet1)):
                write_volume(folder / "in" / f"ReMIND2Reg_{case:04}_{channel}.nii.gz", image, np.eye(4))
        outcome = run(
            scan_folder(Folder(folder / "in")).cases,
            find_config("ReMIND2Reg", asked.preset),
            Options(output=folder / "out", device="cpu"),
        )
    first, last = memory.seen[LOOKED_AT[0]], memory.seen[max(memory.seen)]
    growth = f"{100 * (last / first - 1):+.1f} %"
    print(f"{len(outcome.written)} written, {len(outcome.failed)} failed; growth after the tenth {growth}")
    return 0 if last <= (1 + GROWTH) * first and not outcome.failed else 1


if __name__ == "__main__":
    sys.exit(main())
