"""Run a program of this folder: ``python benchmarks PROGRAM [options]``.

    gpu                 install, check, tune and time the GPU kernels
    sim2real.recovery   re-weighting on problems with a known answer
    sim2real.steps      the cost of an outer step of re-weighting
    sim2real.real_data  errors on real series with few days to train on
    sim2real.wrong_priors  re-weighting where half of the simulated cities are wrong
    sim2real.shipped    errors of the shipped weights on real series
    sim2real.ablations  what each part of the network is worth
    cpu.simulator       the simulator's time and memory
    cpu.whole_models    models of other libraries with our layers swapped in
    baselines.cross_checks  networks of other papers beside those of neuralforecast

``pytest benchmarks`` times the C++ kernels. Both put this folder on Python's path, but not the checkout around it,
whose sources have no compiled modules: ``import simmst`` finds the installed package.
"""

from __future__ import annotations

import re
import runpy
import sys

PROGRAMS = (*re.findall(r"^    (\S+)  ", __doc__ or "", re.MULTILINE), "gpu.child")


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
    elif name not in PROGRAMS:
        sys.exit(f"there is no program {name!r}; the programs are: {', '.join(PROGRAMS[:-1])}")
    else:
        del sys.argv[1]
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
