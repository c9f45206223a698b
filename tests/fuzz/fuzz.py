"""``python tests/fuzz/fuzz.py TARGET [CORPUS...] [-max_total_time=600]``: coverage-guided fuzzing of one target.

Needs atheris. Native targets also need a build of simmst with SIMMST_SANITIZE=fuzzer on the path, and the runtime of
the sanitizers; ``.ci/fuzz`` provides both.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["simmst.data", "simmst.foundation", "simmst.simulation.prior"]):
    import native_targets
    import reader_targets


def main() -> None:
    name = sys.argv.pop(1)
    room = native_targets if name in native_targets.TARGETS else reader_targets
    if name not in room.TARGETS:
        sys.exit(f"no target {name!r}; there are {', '.join((*native_targets.TARGETS, *reader_targets.TARGETS))}")
    sys.argv[0] = f"{sys.executable} {sys.argv[0]} {name}"  # libFuzzer starts a merge of corpora with this
    atheris.Setup(sys.argv, lambda data: room.run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
