"""Install, check, tune and time the GPU kernels on a machine with a GPU: ``python benchmarks gpu``."""
