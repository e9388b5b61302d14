"""The compute kernels in CUDA C++: twins of the torch reference for NVIDIA GPUs."""
