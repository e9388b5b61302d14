"""MCBO: multimodal 3D image registration with multilevel correlation balanced optimization."""

import os

__version__ = "0.1.0"

# Before torch is imported: threads of OpenMP that wait for each other by spinning keep a busy machine's cores from those that
# have work. The demo beside another run of two threads on two cores took 73 s with spinning, 10 s without (2026-11-24).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
