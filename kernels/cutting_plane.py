"""Cutting planes in Triton, with the signatures of ``simmst.reference.cutting_plane``.

Bytes, for P = 1, L = 64 and N = 1e7 on an H200 (4.8 TB/s, 132 multiprocessors): with torch, A x and A^T s read A twice,
5.1 GB in float32; a step here reads A once and the vectors (point in and out, gradient, anchor in float64) once:

    planes     A         with vectors   at 4.8 TB/s   against torch's 5.4 GB in float32
    float32    2.56 GB   2.76 GB        0.58 ms       2.0x
    bfloat16   1.28 GB   1.48 GB        0.31 ms       3.6x
    signs      0.08 GB   0.28 GB        0.06 ms       limited by instructions rather than bytes, see below

To sustain 4.8 TB/s at a latency of about 0.8 us, 29 KB must be in flight on each multiprocessor, 64 KB to be safe. A
tile of 64 x 128 float32 is 32 KB; two blocks of 8 warps fit, and each copies the next two tiles asynchronously while it
works on one: 128 KB, in bfloat16 64 KB. A thread holds eight rows, so A^T s needs one exchange over 8 warps per tile,
and A x needs none before the end. Signs take a shift, a logic instruction and two multiply-adds per entry. These are
half of the instructions issued, about 530 for the 256 columns of a tile in each of 8 warps. At four per clock, they
take 4.1 clocks per column, where memory would allow 1.4. That makes about 0.18 ms at best, a sixth of torch. A shorter
time needs tensor cores.

More than 64 rows do not fit into registers. A pass that only evaluates then gives each block of rows its own programs.
The sum A^T s goes through the blocks in turn, and a step reads a tile again for its second product, from the
second-level cache. No more programs run at a time than the cache has room for, but at least one per multiprocessor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from simmst.core.cutting_plane import PackedSigns, Planes
from simmst.kernels.configurations import Configuration, configuration
from simmst.kernels.cutting_plane_passes import finish, one_pass, tall_pass


def values(planes: Planes, offsets: Tensor, point: Tensor) -> Tensor:
    """Return A x + c."""
    dtype = torch.promote_types(point.dtype, offsets.dtype)
    return _finished(planes, _run(planes, point=point, evaluate=True), offsets, dtype)


def penalty(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """Return sum_l mu_l max(0, v_l)^2."""
    return penalty_and_values(planes, offsets, multipliers, point)[0]


def lagrangian(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> Tensor:
    """Return sum_l mu_l v_l."""
    return lagrangian_and_values(planes, offsets, multipliers, point)[0]


def penalty_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the penalty and the unrounded values of the planes."""
    partials = _run(planes, point=point, evaluate=True)
    return _totalled(planes, partials, offsets, multipliers, point, is_penalty=True)


def lagrangian_and_values(planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Lagrangian's plane term and the unrounded values of the planes."""
    partials = _run(planes, point=point, evaluate=True)
    return _totalled(planes, partials, offsets, multipliers, point, is_penalty=False)


def penalty_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the penalty, the values, and d penalty / d point in two passes: the second needs all the values."""
    slopes = torch.empty(offsets.shape, dtype=torch.float32, device=point.device)
    partials = _run(planes, point=point, evaluate=True)
    total, plane_values = _totalled(planes, partials, offsets, multipliers, point, is_penalty=True, slopes=slopes)
    return total, plane_values, combine(planes, slopes, point.dtype)


def lagrangian_and_gradient(
    planes: Planes, offsets: Tensor, multipliers: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Lagrangian's plane term, the values, and d term / d point = A^T mu, in one pass over the planes."""
    gradient = torch.empty(point.shape, dtype=point.dtype, device=point.device)
    partials = _run(planes, coefficients=multipliers, out=gradient, point=point, evaluate=True)
    total, plane_values = _totalled(planes, partials, offsets, multipliers, point, is_penalty=False)
    return total, plane_values, gradient


def combine(planes: Planes, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """Return A^T s, (..., N) in dtype; rows with coefficient zero are skipped."""
    shape = (*planes.shape[:-2], planes.shape[-1])
    out = torch.empty(shape, dtype=dtype, device=coefficients.device)
    _run(planes, coefficients=coefficients, out=out)
    return out


def step_(
    planes: Planes,
    coefficients: Tensor,
    gradient: Tensor,
    point: Tensor,
    anchor: Tensor,
    anchor_values: Tensor,
    *,
    lr: float,
    adam_state: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Take one optimiser step in place and return the values after it, in one pass over the planes.

    Adam's count of steps is updated on its own device. On the CPU it is a constant to a CUDA graph, as it is to
    torch.optim.Adam without ``capturable``.
    """
    targets = [point] if adam_state is None else [point, adam_state[0], adam_state[1]]
    with torch.no_grad():
        written = [_apart(target) for target in targets]
        step = None if adam_state is None else _advanced(adam_state[2], point.device)
        partials = _run(
            planes,
            coefficients=coefficients,
            gradient=_unit_stride(gradient),
            point=written[0],
            anchor=_unit_stride(anchor),
            averages=written[1:],
            step=step,
            lr=lr,
            evaluate=True,
        )
        for target, result in zip(targets, written, strict=True):
            if result is not target:
                target.copy_(result)
    return _finished(planes, partials, anchor_values, anchor_values.dtype)


def _advanced(step: Tensor, device: torch.device) -> Tensor:
    """Count this step, and return the count on the device."""
    step.add_(1)
    if step.device == device:
        return step
    return torch.full((), float(step), dtype=torch.float64, device=device)


def _run(
    planes: Planes,
    *,
    coefficients: Tensor | None = None,
    out: Tensor | None = None,
    gradient: Tensor | None = None,
    point: Tensor | None = None,
    anchor: Tensor | None = None,
    averages: list[Tensor] | None = None,
    step: Tensor | None = None,
    lr: float = 0.0,
    evaluate: bool = False,
) -> Tensor | None:
    """Run one pass over the planes; if `evaluate`, return the second product's unscaled sums (P, workers, L)."""
    stored, scale = _rows(planes)
    coefficients = None if coefficients is None else coefficients.contiguous()
    point = None if point is None else _unit_stride(point)
    rows, columns = planes.shape[-2], planes.shape[-1]
    problems = stored.shape[0] if stored.dim() == 3 else 1
    packed = scale is not None
    chosen, tall = _chosen(rows, packed, 8 * stored.element_size(), coefficients is not None)
    blocks = 1 if tall or coefficients is not None else max(1, triton.cdiv(rows, chosen.constants["ROWS"]))
    workers = _workers(stored, chosen, problems * blocks, columns, rows if tall else 0)
    partials = None
    if evaluate:
        partials = torch.empty((problems, workers, rows), dtype=torch.float32, device=stored.device)
    # Without a second product, an empty tile changes nothing. With a second product, N = 0 still has sums, all zero.
    if problems == 0 or (columns == 0 and not evaluate) or (rows == 0 and coefficients is None):
        return partials
    exp_avg, exp_avg_sq = averages or (None, None)
    arguments = (
        *(stored, *_strides(stored)),
        *(scale if coefficients is not None else None, coefficients),
        out,
        *_with_problem_stride(gradient, point, anchor, exp_avg, exp_avg_sq),
        *(step, float(lr), 1.0, partials, rows, columns),
    )
    with torch.cuda.device_of(stored):
        constants: dict[str, Any] = {
            "WIDTH": 8 if packed else 16 // stored.element_size(),
            "PACKED": packed,
            "EVICTION": "evict_first" if gradient is not None and not tall else "",
            **chosen.launch(),
            **launch_options(packed, columns % 16 == 0 and stored.stride(-2) % 16 == 0),
        }
        if tall:
            tall_pass[(problems * workers,)](*arguments, workers, **constants)
        else:
            one_pass[(problems * blocks * workers,)](*arguments, blocks, workers, **constants)
    return partials


def launch_options(packed: bool, aligned: bool) -> dict[str, int]:
    """Limit the registers of a thread so that two blocks of 8 warps fit; without the limit only one would.

    Unaligned rows have no limit: they are read entry by entry, which needs registers for the addresses of all entries.
    """
    return {"maxnreg": 128} if packed or aligned else {}


def _chosen(rows: int, packed: bool, bits: int, combining: bool) -> tuple[Configuration, bool]:
    """Return the configuration, and whether the rows of a sum take more than one of its blocks."""
    kind = "signs" if packed else "dense"
    bucket = f"L{triton.next_power_of_2(max(rows, 1))}-{1 if packed else bits}bit"
    held = configuration(f"cutting_plane.{kind}", bucket)
    if combining and rows > held.constants["ROWS"]:
        return configuration(f"cutting_plane.tall_{kind}", bucket), True
    return held, False


def _workers(stored: Tensor, chosen: Configuration, shares: int, columns: int, tall_rows: int) -> int:
    """Return the programs per problem (and block of rows): as many as run at a time, and at most one per tile."""
    processors, cache = _device(stored.device)
    width = chosen.constants["COLUMNS"]
    programs = processors * chosen.constants["PROGRAMS"]
    if tall_rows:  # the tiles of all programs must fit into half of the second-level cache
        tile = tall_rows * (width * stored.element_size() if stored.dtype != torch.uint8 else width // 8)
        programs = max(processors, min(programs, cache // 2 // tile))
    tiles = max(1, triton.cdiv(columns, width))
    most = min(tiles, max(1, programs // max(shares, 1)))
    return int(triton.cdiv(tiles, triton.cdiv(tiles, most)))


@functools.cache
def _device(device: torch.device) -> tuple[int, int]:
    """Return the number of multiprocessors and the bytes of second-level cache."""
    if device.type != "cuda":
        return 2, 2**20  # the interpreter
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.L2_cache_size


def _finished(planes: Planes, partials: Tensor | None, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(offsets.shape, dtype=dtype, device=offsets.device)
    if out.numel() > 0:
        _finish(planes, partials, offsets, out)
    return out


def _totalled(
    planes: Planes,
    partials: Tensor | None,
    offsets: Tensor,
    multipliers: Tensor,
    point: Tensor,
    *,
    is_penalty: bool,
    slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(point.dtype, offsets.dtype)
    total_dtype = torch.promote_types(dtype, multipliers.dtype)
    total = torch.empty(offsets.shape[:-1], dtype=total_dtype, device=point.device)
    out = torch.empty(offsets.shape, dtype=torch.promote_types(dtype, torch.float32), device=point.device)
    if total.numel() > 0:
        _finish(planes, partials, offsets, out, multipliers.contiguous(), total, slopes, is_penalty)
    return total, out


def _finish(
    planes: Planes,
    partials: Tensor | None,
    offsets: Tensor,
    out: Tensor,
    multipliers: Tensor | None = None,
    total: Tensor | None = None,
    slopes: Tensor | None = None,
    is_penalty: bool = False,
) -> None:
    assert partials is not None  # noqa: S101 for the type checker: every caller evaluates
    problems, workers, rows = partials.shape
    _, scale = _rows(planes)
    chosen = configuration("cutting_plane.finish", f"L{triton.next_power_of_2(max(rows, 1))}")
    blocks = 1 if total is not None else triton.cdiv(rows, chosen.constants["ROWS"])
    arguments = (partials, scale, offsets.contiguous(), multipliers, out, total, slopes, rows, blocks, workers)
    with torch.cuda.device_of(out):
        finish[(problems * blocks,)](*arguments, PENALTY=is_penalty, **chosen.launch())


def _rows(planes: Planes) -> tuple[Tensor, Tensor | None]:
    """Return the stored rows with stride 1 along N, and the scale of packed signs or None."""
    if isinstance(planes, PackedSigns):
        return _unit_stride(planes.bits), planes.scale.contiguous()
    return _unit_stride(planes), None


def _strides(tensor: Tensor) -> tuple[int, int]:
    """Return the strides from problem to problem and from row to row."""
    return (tensor.stride(0) if tensor.dim() == 3 else 0), tensor.stride(-2)


def _with_problem_stride(*tensors: Tensor | None) -> list[Any]:
    flat: list[Any] = []
    for tensor in tensors:
        flat += [tensor, tensor.stride(0) if tensor is not None and tensor.dim() == 2 else 0]
    return flat


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] < 2 else tensor.contiguous()


def _apart(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that the kernel can write to if its stride is not 1 or its problems overlap."""
    overlap = tensor.dim() == 2 and tensor.shape[0] > 1 and tensor.stride(0) < tensor.shape[1]
    return tensor.contiguous() if overlap else _unit_stride(tensor)
