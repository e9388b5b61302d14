"""One pair of images from Python."""
