"""The shared parts of the benchmarks: clocks, the machine's limits, and the checks of a result before it is timed."""

from __future__ import annotations

import argparse


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python benchmarks PROGRAM``, which prints the description unchanged as its help."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python benchmarks {program}", description=description, formatter_class=layout)
