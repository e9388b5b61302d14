"""One step of a paper per module: pure functions with their own settings."""
