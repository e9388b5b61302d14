"""Inverse consistency: brings the forward and the backward displacement closer to each other's inverse.

docs/method.md, step 5.
"""

from mcbo.core.field import half_pixel_stretch, warp
from mcbo.core.types import Displacement


def make_consistent(
    forward: Displacement, backward: Displacement, *, rounds: int, stretch: bool
) -> tuple[Displacement, Displacement]:
    """Draws two displacements, f from fixed to moving and b back, toward each other's inverse; both ``(1, 3, h, w, d)`` cells.

    Each round replaces, at once, f by ½(f − b∘(id + f)) and b by ½(b − f∘(id + b)). ``stretch`` samples as the published
    program does (``field.half_pixel_stretch``).
    """
    for _ in range(rounds):
        ahead = half_pixel_stretch(forward) if stretch else forward
        back = half_pixel_stretch(backward) if stretch else backward
        forward, backward = (forward - warp(backward, ahead)) / 2, (backward - warp(forward, back)) / 2
    return forward, backward
