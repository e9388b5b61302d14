"""The visual report, one HTML page."""
