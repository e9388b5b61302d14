"""The command line, ``python -m mcbo``."""

import os

# Read when torch is imported, which comes after this. Else its threads wait for each other by spinning, at the cost of whatever
# else runs on the machine; and if a core is busy, of all of them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
