"""Adapters of the compiled kernels: ``cpu`` calls ``simmst._cpu``, ``cuda`` calls ``simmst._cuda``."""
