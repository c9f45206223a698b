"""Adapters that hand torch tensors to the compiled kernels of simmst._cpu."""
