"""Every CUDA kernel compiles without a warning, within its recorded registers, stack and spills. Needs nvcc, no GPU."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator

import pytest
import resources
from resources import Job, Record, Resources

from simmst.native.cuda.launch import emulated

if not resources.nvcc():
    pytest.skip("there is no nvcc: put it on PATH or set CUDACXX", allow_module_level=True)

if emulated():
    pytest.skip("the emulator runs what a plain pytest compiles", allow_module_level=True)

JOBS = [Job(source, architecture) for source in resources.sources() for architecture in resources.architectures()]
Results = dict[Job, "concurrent.futures.Future[dict[str, Resources]]"]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """All selected compilations, two at a time; recorded at the end if that is requested."""
    chosen = [item.callspec.params["job"] for item in request.session.items if _compiles(item)]
    with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        # The long ones first, so that none runs alone at the end.
        ordered = sorted(chosen, key=lambda job: -job.source.stat().st_size)
        futures = {job: pool.submit(job.run) for job in ordered}
        yield futures
        pool.shutdown(cancel_futures=True)
    if resources.RECORDING:
        _record(futures)


def _compiles(item: pytest.Item) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    return isinstance(item, pytest.Function) and isinstance(params.get("job"), Job)  # other files have their own jobs


def _record(futures: Results) -> None:
    """Replace the lines of what was compiled, and drop those of files that are gone."""
    found = {job: done.result() for job, done in futures.items() if done.done() and done.exception() is None}
    version, before = resources.nvcc_version(), Record.read()
    stems = {source.stem for source in resources.sources()}
    kept = {
        key: line
        for key, line in before.kernels.items()
        if before.nvcc == version and key.partition(":")[0] in stems and not any(_of(key, job) for job in found)
    }
    new = {key: line for kernels in found.values() for key, line in kernels.items()}
    Record(version, {**kept, **new}).write()


def _of(key: str, job: Job) -> bool:
    return key.startswith(f"{job.source.stem}: ") and key.endswith(f", sm_{job.architecture}")


@pytest.mark.slow(of=("csrc/cuda", "csrc/core", "tests/native/cuda"))
@pytest.mark.parametrize("job", JOBS, ids=str)
def test_kernels_compile_within_their_record(job: Job, results: Results) -> None:
    found, record = results[job].result(), Record.read()
    # Another version of the compiler gives other figures; then it is enough that the kernels compile without warnings.
    if resources.RECORDING or record.nvcc != resources.nvcc_version():
        return
    problems = {key: resources.excess(line, record.kernels.get(key)) for key, line in found.items()}
    problems = {key: problem for key, problem in problems.items() if problem}
    assert not problems, f"{problems} ({resources.HOW_TO_RECORD})"
    gone = {key for key in record.kernels if _of(key, job)} - set(found)
    assert not gone, f"recorded, but no longer kernels: {sorted(gone)} ({resources.HOW_TO_RECORD})"


def test_the_record_is_of_all_files_and_architectures() -> None:
    if resources.RECORDING:
        pytest.skip("the record is being written")
    recorded = {(key.partition(":")[0], key.rpartition("_")[2]) for key in Record.read().kernels}
    wanted = {(source.stem, architecture) for source in resources.sources() for architecture in resources.ARCHITECTURES}
    new, gone = sorted(wanted - recorded), sorted(recorded - wanted)
    assert recorded == wanted, f"not recorded: {new}, gone: {gone} ({resources.HOW_TO_RECORD})"


def test_what_exceeds_the_record_is_named() -> None:
    recorded = Resources(registers=64, spills=0, stack=0)
    assert resources.excess(recorded._replace(registers=72), recorded) == ""
    assert resources.excess(recorded._replace(registers=73), recorded) == "registers 73, at most 72"
    assert resources.excess(recorded._replace(spills=8, stack=8), recorded) == "spills 8, at most 0; stack 8, at most 0"
    assert resources.excess(recorded, None) == "it is not in the record"


SPILLING = """
template <int N>
__global__ void __launch_bounds__(1024, 2) spill(const float* in, float* out) {
  float x[N];
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) out[i * 1024 + threadIdx.x] = x[i] * x[N - 1 - i];
}
template __global__ void spill<64>(const float*, float*);
"""


def test_a_spill_and_a_warning_are_seen(tmp_path) -> None:
    """64 values in each thread do not fit into 32 registers."""
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    found = Job(source, "90").run()
    assert list(found) == ["spilling: spill<64>, sm_90"]
    (line,) = found.values()
    assert line.registers <= 32
    assert line.spills > 0
    source.write_text("__global__ void one() { int unused; }\n")
    with pytest.raises(RuntimeError, match=r"spilling-sm_90: nvcc ended with \d+:\n(.*\n)*.*unused"):
        Job(source, "90").run()
