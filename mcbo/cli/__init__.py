"""The command line, ``python -m mcbo``."""
