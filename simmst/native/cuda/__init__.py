"""The functions of ``simmst.reference`` on the CUDA kernels of ``simmst._cuda``."""
