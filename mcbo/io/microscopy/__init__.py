"""Images of microscopes: TIFF, folders of slices, OME-Zarr; landmarks of BigWarp; displacements as OME-NGFF.

Positions in these files grow along columns (x), rows (y) and slices (z). As in ITK they are LPS, so that a grid's affine, which
is RAS, has x and y reversed.
"""
