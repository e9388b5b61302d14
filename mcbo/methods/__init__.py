"""A method: its settings and the order of its steps."""
