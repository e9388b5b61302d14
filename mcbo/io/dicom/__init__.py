"""DICOM series: folders with a file for each slice.

ITK's GDCM reads headers and pixels, in the other process (``mcbo.io.sandbox``); where each slice lies is judged here. Of a
header, only what places slices and tells them apart is taken (``sandbox.with_itk.DICOM_TAGS``): no names of patients.
"""
