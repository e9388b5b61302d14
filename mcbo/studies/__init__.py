"""Demo, benchmark and ablation."""
