"""The version of this package, where packaging reads it without importing torch."""

__version__ = "0.1.0"
