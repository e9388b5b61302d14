"""Transforms of other programs than ITK's. What a file says of itself decides how it is read, not its suffix.

What cannot be read exactly is refused by its name, with the command that makes something readable of it.
"""
