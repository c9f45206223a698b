"""What operators, reference, adapters and kernels share: the words of each hot path, dtypes and random numbers."""
