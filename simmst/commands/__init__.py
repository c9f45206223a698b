"""The ``simmst`` command."""
