"""Foreign readers, ITK and nibabel, in a process of their own with limits on time, memory and files.

``client`` is what the program calls. ``server`` runs in the other process: it imports a reader once, and forks for each file,
so that a crash or a hang costs one file. ``with_itk`` and ``with_nibabel`` are the readers. The other process imports no torch.
"""
