"""What the benchmarks share: clocks, the machine's limits, and the checks of a result before it is timed."""

from __future__ import annotations

import argparse


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of ``python benchmarks PROGRAM``, whose help is the description as it stands."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python benchmarks {program}", description=description, formatter_class=layout)
