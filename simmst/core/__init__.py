"""Definitions that operators, reference, adapters and kernels share for each hot path, dtypes and random numbers."""
