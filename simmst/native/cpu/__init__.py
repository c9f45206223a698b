"""The functions of ``simmst.reference`` on the C++ kernels of ``simmst._cpu``."""
