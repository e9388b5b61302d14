"""How a result looks in a notebook: a sentence, and the fixed image's edges on the warped image in three planes."""

import base64
from html import escape

from mcbo.api.transform import Transform
from mcbo.geometry.resample import resample
from mcbo.methods.world import Placed
from mcbo.qc.picture import edge_png, gray_png, overlaid, window
from mcbo.qc.plane import cut, planes_through

_HEIGHT = 220
"""Of the picture, pixels."""


def html_of(transform: Transform, fixed: Placed, moving: Placed, *, text: str) -> str:
    """A figure, with a text as its caption."""
    middle = [(size - 1) / 2 for size in fixed.grid.shape]
    image, known = fixed.volume[0, 0].numpy(), fixed.known()[0, 0].numpy()
    warped = resample(moving.volume, moving.grid, fixed.grid, displacement=transform.tensor)[0, 0].numpy()
    black, white = window(warped)
    pairs, names = [], []
    for plane in planes_through(middle, shape=fixed.grid.shape, affine=fixed.grid.affine):
        edges = edge_png(cut(plane, image), plane, seen=cut(plane, known))
        pairs.append((gray_png(cut(plane, warped), plane, black=black, white=white), edges))
        names.append(plane.name)
    source = base64.b64encode(overlaid(pairs, height=_HEIGHT)).decode("ascii")
    caption = f"Warped image, with edges of the fixed one: {', '.join(names)}."
    return (
        f'<figure style="margin:0"><img src="data:image/png;base64,{source}" style="max-width:100%" alt="{caption}">'
        f"<figcaption>{escape(text)}<br>{caption}</figcaption></figure>"
    )
