"""Every Triton kernel and configuration compiles for sm_80, sm_90 and sm_100, within its recorded resources.

    SIMMST_RECORD=1 pytest tests/kernels/test_compiled.py

records them again, or with `-k` only those selected. Needs no GPU.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import re
from collections.abc import Iterator

import pytest

pytest.importorskip("triton", reason="the package triton is not installed")

import compiled
import triton
from compiled import SPECIALISATIONS, Job, Record
from specialisations import SHARED_LIMIT, Resources, Specialisation, compile_ahead, with_ones

from simmst.kernels import configurations
from simmst.kernels.configurations import Configuration

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

JOBS = compiled.jobs()
Results = dict[Job, "concurrent.futures.Future[Resources]"]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """All selected compilations, running in two processes; recorded at the end if that is requested."""
    chosen = [item.callspec.params["job"] for item in request.session.items if _compiles(item)]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=context) as pool:
        futures = {job: pool.submit(job.run) for job in chosen}
        yield futures
        pool.shutdown(cancel_futures=True)
    if compiled.RECORDING:
        _record(futures)


def _compiles(item: pytest.Item) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    return isinstance(item, pytest.Function) and isinstance(params.get("job"), Job)  # other files have their own jobs


def _record(futures: Results) -> None:
    good = {job.key: done.result() for job, done in futures.items() if done.done() and done.exception() is None}
    wanted = {job.key for job in JOBS}
    before = Record.read()
    kept = {key: line for key, line in before.lines.items() if key in wanted and before.triton == triton.__version__}
    Record(triton.__version__, {**kept, **good}).write()


@pytest.mark.slow(of=("kernels", "tests/kernels"))  # all of them take minutes
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.key.replace(", ", "-").replace(" ", "-"))
def test_a_kernel_compiles_within_its_record(job: Job, results: Results) -> None:
    found = results[job].result()
    limit = SHARED_LIMIT[job.capability]
    assert found.shared <= limit, f"{job.key}: {found.shared} bytes of shared memory, {limit} are available"
    record = Record.read()
    # Another version of the compiler gives other figures; then it is enough that the kernel compiles and fits.
    if not compiled.RECORDING and record.triton == triton.__version__:
        excess = compiled.excess(found, record.lines.get(job.key))
        assert not excess, f"{job.key}: {excess} ({compiled.HOW_TO_RECORD})"


def test_the_record_holds_these_kernels_and_no_others() -> None:
    if compiled.RECORDING:
        pytest.skip("the record is being written")
    recorded, wanted = set(Record.read().lines), {job.key for job in JOBS}
    assert len(wanted) == len(JOBS), "two specialisations share a label"
    new, gone = sorted(wanted - recorded), sorted(recorded - wanted)
    assert recorded == wanted, f"not recorded: {new[:5]}, gone: {gone[:5]} ({compiled.HOW_TO_RECORD})"


@pytest.mark.parametrize("module", compiled.modules(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_kernel_is_specialised_or_called_by_one_that_is(module) -> None:
    everything = [value for each in compiled.modules() for value in vars(each).values() if _is_kernel(value)]
    specialised = {id(one.kernel) for one in SPECIALISATIONS}
    for name, value in vars(module).items():
        if _is_kernel(value) and value.fn.__module__ == module.__name__ and id(value) not in specialised:
            callers = [other for other in everything if other is not value and re.search(rf"\b{name}\(", other.src)]
            assert callers, f"{module.__name__}.{name} is in no SPECIALISATIONS, and no kernel calls it"


def _is_kernel(value: object) -> bool:
    return isinstance(value, triton.runtime.JITFunction)


@pytest.mark.parametrize("kernel", configurations.kernels())
def test_every_configuration_is_compiled(kernel: str) -> None:
    compiled_with = {id(one) for each in SPECIALISATIONS for one in each.configurations}
    missing = [one.name for one in configurations.named(kernel) if id(one) not in compiled_with]
    assert not missing, f"no specialisation is compiled with {kernel}'s {missing}"


def test_what_exceeds_the_record_is_named() -> None:
    recorded = Resources(registers=64, spills=0, stack=0, shared=1024, num_warps=4)
    assert compiled.excess(recorded._replace(registers=72), recorded) == ""
    assert compiled.excess(recorded._replace(registers=73), recorded) == "registers 73, at most 72"
    assert compiled.excess(recorded._replace(spills=8, stack=8), recorded) == "spills 8, at most 0; stack 8, at most 0"
    assert compiled.excess(recorded, None) == "it is not in the record"


@triton.jit
def _sum(x, out, n, BLOCK: triton.language.constexpr):  # pragma: no cover
    i = triton.language.arange(0, BLOCK)
    triton.language.store(out, triton.language.sum(triton.language.load(x + i, mask=i < n, other=0.0), 0))


NARROW = Configuration("narrow", {"BLOCK": 256}, 4, 1)


def test_a_specialisation_that_does_not_fit_its_kernel_is_refused() -> None:
    def of(signature: dict[str, str], constants: dict[str, int]) -> Specialisation:
        return Specialisation(_sum, signature, constants, (NARROW,), "sum")

    with pytest.raises(ValueError, match=r"sum, configuration narrow: the kernel takes \['x', 'out', 'n', 'BLOCK'\]"):
        compile_ahead(of({"x": "*fp32", "out": "*fp32"}, {}), NARROW, 90)
    with pytest.raises(ValueError, match=r"sum: x is \*fp32:8; the only suffix is :16"):
        compile_ahead(of({"x": "*fp32:8", "out": "*fp32", "n": "i32"}, {}), NARROW, 90)
    found = compile_ahead(of({"x": "*fp32:16", "out": "*fp32", "n": "i32"}, {}), NARROW, 90)
    assert found.registers > 0
    assert found.shared > 0
    assert (found.spills, found.num_warps) == (0, 4)


@triton.jit
def _count(out, n):  # pragma: no cover
    triton.language.store(out, n.dtype.primitive_bitwidth)


def test_a_size_of_1_that_is_taken_for_a_tensor_does_not_compile() -> None:
    plain = Configuration("plain", {}, 4, 1)
    general = Specialisation(_count, {"out": "*i32:16", "n": "i32"}, {}, (plain,), "count")
    (one,) = with_ones([general])
    assert (one.constants, one.label) == ({"n": 1}, "count, sizes 1")
    assert compile_ahead(general, plain, 90).registers > 0
    with pytest.raises(triton.CompilationError):
        compile_ahead(one, plain, 90)


def test_a_spill_is_seen() -> None:
    """256 values in each thread do not fit into 64 registers."""
    wide = Configuration("wide", {"BLOCK": 32 * 512}, 1, 1)
    with_few = Specialisation(_sort, {"x": "*fp32:16", "out": "*fp32:16"}, {}, (wide,), "sort", {"maxnreg": 64})
    assert compile_ahead(with_few, wide, 80).spills > 0


@triton.jit
def _sort(x, out, BLOCK: triton.language.constexpr):  # pragma: no cover
    i = triton.language.arange(0, BLOCK)
    values = triton.language.load(x + i)
    triton.language.debug_barrier()
    triton.language.store(out + BLOCK - 1 - i, values / triton.language.max(values, 0))
