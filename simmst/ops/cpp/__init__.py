"""The hot paths on the compiled CPU kernels of ``simmst._cpu``."""
