"""Where voxels lie in the world; no features, no files."""
