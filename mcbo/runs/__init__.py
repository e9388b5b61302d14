"""Many cases, from files to files."""
