"""Image, transform, landmark and JSON files, one format per module."""
