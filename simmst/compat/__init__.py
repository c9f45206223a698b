"""Our layers in models of other libraries: Hugging Face, neuralforecast, Time-Series-Library, Informer2020, PyPOTS."""

from simmst.compat.swap import restore, swap

__all__ = ["restore", "swap"]
