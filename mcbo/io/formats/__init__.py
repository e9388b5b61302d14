"""Formats of images, a module each, listed in ``registry``.

A module judges the header, which may claim anything, before a foreign reader sees the file (``mcbo.io.sandbox``).
"""
