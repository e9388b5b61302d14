"""Two images to try the plugin with."""

from mcbo.napari.layers import LayerData
from mcbo.studies.phantom import make_phantom

_SHAPE = (72, 64, 68)


def demo() -> list[LayerData]:
    """A drawn head as ultrasound (fixed) and MRI (moving), with a deformation between them; voxels of 1 mm."""
    phantom = make_phantom(_SHAPE, wedge=True)
    images = (("ultrasound", phantom.fixed, "gray"), ("MRI", phantom.cet1, "magenta"))
    return [
        (volume[0, 0].numpy(), {"name": name, "units": ("mm",) * 3, "colormap": color, "blending": "additive"}, "image")
        for name, volume, color in images
    ]
