"""MCBO: multimodal 3D image registration with multilevel correlation balanced optimization."""

__version__ = "0.1.0"
