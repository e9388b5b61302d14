"""MCBO: multimodal 3D image registration with multilevel correlation balanced optimization."""

import os

__version__ = "0.1.0"

# Before torch is imported: threads of OpenMP that wait for each other spin for milliseconds and so keep a busy machine's cores
# from those that have work. The demo beside another run of two threads on two cores took 73 s so, 10 s without; a short
# spin is nearly as good there and costs nothing on an idle machine (2026-11-24).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
