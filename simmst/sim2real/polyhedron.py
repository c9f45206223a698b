r"""The polyhedron: cutting planes :math:`v_l = a_l \cdot w + b_l \cdot \phi + c_l \le 0` around phi = psi(w).

A plane is stored as two rows, one for the sample weights w (float32) and one for the model phi, whose storage may be
float32, bfloat16, or one bit per entry. Its offset is computed in float64 from the stored rows. The fused step updates
the values at the current point from step to step, relative to an anchor in float64 that is renewed whenever the planes
change. With several ranks, each rank keeps its own columns of both rows, and a value is the sum over the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simmst.distributed import ALONE, ProcessGroup
from simmst.errors import ConfigError
from simmst.ops import PackedSigns, cutting_plane_step_, cutting_plane_values, pack_signs

AdamState = tuple[Tensor, Tensor, Tensor]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Rows:
    """A stack of at most `capacity` rows of `size` entries in one storage; the first `count` are in use.

    Raises:
        ConfigError: there is not enough memory; the message says how much is needed and which setting to lower.

    Example:
        >>> rows = Rows(4, 3, "sign", torch.device("cpu"))
        >>> rows.push(torch.tensor([2.0, -2.0, 2.0]))
        >>> rows.dense()
        tensor([[ 2., -2.,  2.]])
    """

    def __init__(self, capacity: int, size: int, storage: str, device: torch.device) -> None:
        self.capacity, self.size, self.storage, self.count = capacity, size, storage, 0
        shape = (capacity, (size + 7) // 8 if storage == "sign" else size)
        dtype = torch.uint8 if storage == "sign" else _DTYPES[storage]
        needed, free = shape[0] * shape[1] * dtype.itemsize, free_memory(device)
        refusal = (
            f"{capacity} planes of {size} entries in {storage} take {needed / 1e9:.3g} GB, which {device} does not "
            "have; lower max_planes, or set storage to 'bfloat16' or 'sign'"
        )
        if free is not None and needed > free:  # otherwise the process is killed when it first writes there
            raise ConfigError(f"{refusal} ({free / 1e9:.3g} GB are free)")
        try:
            self.entries = torch.zeros(shape, dtype=dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            raise ConfigError(f"{refusal} ({str(error).splitlines()[0]})") from error
        self.scale = torch.ones(capacity, dtype=torch.float32, device=device)

    def planes(self, count: int | None = None) -> Tensor | PackedSigns:
        """Return the rows in use, in the form that the operators take."""
        count = self.count if count is None else count
        if self.storage == "sign":
            return PackedSigns(self.entries[:count], self.scale[:count], self.size)
        return self.entries[:count]

    def dense(self) -> Tensor:
        """Return the rows in use as a dense tensor."""
        planes = self.planes()
        return planes.unpack() if isinstance(planes, PackedSigns) else planes

    def push(self, row: Tensor, part: slice = slice(None)) -> None:
        """Append these columns of a row; storage "sign" keeps their signs and the largest magnitude of the row."""
        if self.storage == "sign":
            packed = pack_signs(row[None, part])
            self.entries[self.count] = packed.bits[0]
            self.scale[self.count] = row.abs().amax()
        else:
            self.entries[self.count] = row[part]
        self.count += 1

    def keep(self, order: Tensor) -> None:
        """Keep the rows with the given numbers, in that order; rows that stay in their place are not copied."""
        moved = (order != torch.arange(len(order), device=order.device)).nonzero().squeeze(1)
        self.entries[moved] = self.entries[order[moved]]
        self.scale[moved] = self.scale[order[moved]]
        self.count = len(order)


class Polyhedron:
    """At most `max_planes` planes, their offsets, multipliers and ages, and their values at the current point.

    Args:
        num_weights: n, length of w, or of this rank's part of it if w is sharded.
        num_parameters: N, length of phi.
        max_planes: capacity; adding to a full polyhedron evicts the oldest.
        storage: storage of the rows for phi.
        device: device of all tensors.
        processes: processes that share the columns. Each is given the whole of phi and of its gradients, keeps the
            columns of `block`, and gets the whole of phi back.
        weights_sharded: whether w and its columns are sharded too; if not, w is the same on every rank.

    Example:
        >>> polyhedron = Polyhedron(2, 3, max_planes=2, storage="float32", device=torch.device("cpu"))
        >>> w, phi = torch.zeros(2), torch.ones(3)
        >>> polyhedron.add(torch.zeros(2), torch.tensor([1.0, 0.0, 0.0]), value=0.5, weights=w, phi=phi)
        >>> polyhedron.anchor(w, phi)
        >>> polyhedron.values
        tensor([0.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        num_weights: int,
        num_parameters: int,
        *,
        max_planes: int,
        storage: str,
        device: torch.device,
        processes: ProcessGroup = ALONE,
        weights_sharded: bool = True,
    ) -> None:
        self.max_planes, self.processes, self.weights_sharded = max_planes, processes, weights_sharded
        self.block = processes.block(num_parameters)
        self.weight_rows = Rows(max_planes, num_weights, "float32", device)
        self.model_rows = Rows(max_planes, self.block.stop - self.block.start, storage, device)
        self.offsets = torch.zeros(0, dtype=torch.float64, device=device)
        self.multipliers = torch.zeros(0, dtype=torch.float32, device=device)
        self.age = torch.zeros(0, dtype=torch.int64, device=device)
        self.values = torch.zeros(0, dtype=torch.float64, device=device)
        self._anchors: tuple[Tensor, Tensor] | None = None
        self._anchor_values: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self.weight_rows.count

    def evaluate(self, weights: Tensor, phi: Tensor) -> Tensor:
        """Return v = A w + B phi + c in float64, from scratch."""
        return self.processes.all_reduce(self._evaluate(weights, phi)[1])

    def _evaluate(self, weights: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return this rank's share of A w + c, and of v."""
        of_weights = self._partial(
            cutting_plane_values(self.weight_rows.planes(), self._addend(self.offsets), weights.double())
        )
        return of_weights, cutting_plane_values(self.model_rows.planes(), of_weights, phi[self.block].double())

    def _addend(self, of_weights: Tensor) -> Tensor:
        """Return the terms to which this rank adds its product with w."""
        return self.processes.partial(of_weights) if self.weights_sharded else of_weights

    def _partial(self, of_weights: Tensor) -> Tensor:
        """Return this rank's share of a sum over w; if w is the same on every rank, rank 0 has all of it."""
        return of_weights if self.weights_sharded else self.processes.partial(of_weights)

    def lift(self, weights: Tensor, psi: Tensor) -> None:
        """Lower offsets until (w, psi), feasible by construction, satisfies every plane."""
        if len(self):
            self.offsets = self.offsets - self.evaluate(weights, psi).clamp(min=0)

    def drop(self, *, tolerance: float, max_age: int) -> None:
        """Increase the age of all planes, then drop those without a multiplier and those that are too old."""
        self.age = self.age + 1
        self.keep(((self.multipliers > tolerance) & (self.age <= max_age)).nonzero().squeeze(1))

    def keep(self, kept: Tensor) -> None:
        """Keep the planes with the given ascending numbers; the last of them fill the places of those dropped."""
        count = len(kept)
        if count == len(self):
            return
        order = torch.arange(count, device=kept.device)
        stays = torch.zeros(len(self), dtype=torch.bool, device=kept.device)
        stays[kept] = True
        order[~stays[:count]] = kept[kept >= count]
        self.weight_rows.keep(order)
        self.model_rows.keep(order)
        self.offsets, self.multipliers, self.age = self.offsets[order], self.multipliers[order], self.age[order]

    def add(self, a: Tensor, b: Tensor, *, value: float, weights: Tensor, phi: Tensor) -> None:
        """Add the plane with gradient (a, b), `value` at (w, phi) and multiplier 0; evict the oldest if full."""
        if len(self) == self.max_planes:
            others = torch.ones(len(self), dtype=torch.bool, device=self.age.device)
            others[self.age.argmax()] = False
            self.keep(others.nonzero().squeeze(1))
        self.weight_rows.push(a)
        self.model_rows.push(b, self.block)
        new = self.offsets.new_zeros(1)
        self.offsets = torch.cat([self.offsets, new])
        self.multipliers = torch.cat([self.multipliers, new.to(self.multipliers.dtype)])
        self.age = torch.cat([self.age, new.to(self.age.dtype)])
        # Computed from the stored row, so that rounding the row does not change the value at (w, phi).
        self.offsets[-1] = value - self._last_product(weights, phi)

    def _last_product(self, weights: Tensor, phi: Tensor) -> Tensor:
        zero = self.offsets.new_zeros(1)
        of_weights = self._partial(cutting_plane_values(_last(self.weight_rows), zero, weights.double()))
        product = cutting_plane_values(_last(self.model_rows), of_weights, phi[self.block].double())
        return self.processes.all_reduce(product)[0]

    def anchor(self, weights: Tensor, phi: Tensor) -> None:
        """Make (w, phi) the point relative to which values are updated, and compute the values there in float64."""
        self._anchors = weights.clone(), phi[self.block].clone()
        if not len(self):
            self._anchor_values, self.values = None, self.offsets
            return
        of_weights, whole = self.processes.all_reduce(torch.stack(self._evaluate(weights, phi)))
        self._anchor_values = of_weights, whole - of_weights
        self.values = whole

    def step_(
        self,
        coefficients: Tensor,
        weights: Tensor,
        weight_gradient: Tensor,
        phi: Tensor,
        model_gradient: Tensor,
        *,
        lr_weights: float,
        lr_model: float,
        adam_state: AdamState | None,
    ) -> None:
        """Move w and phi in place along their gradients plus A^T s and B^T s, and update the values in the same pass.

        Args:
            coefficients: s, (L,).
            weights: w, (n,), updated.
            weight_gradient: (n,), the rest of w's gradient.
            phi: (N,), updated by gradient descent.
            model_gradient: (N,), grad G(phi).
            lr_weights: step of w.
            lr_model: step of phi.
            adam_state: (exp_avg, exp_avg_sq, step) of w, updated; None takes a plain step.
        """
        assert self._anchors is not None  # noqa: S101 anchor() comes first
        assert self._anchor_values is not None  # noqa: S101
        of_weights, of_model = self._anchor_values
        parts = (
            (self.weight_rows, weight_gradient, weights, lr_weights, adam_state),
            (self.model_rows, model_gradient[self.block], phi[self.block], lr_model, None),
        )
        values = [
            cutting_plane_step_(rows.planes(), coefficients, gradient, point, anchor, known, lr=lr, adam_state=state)
            for (rows, gradient, point, lr, state), anchor, known in zip(
                parts, self._anchors, (self._addend(of_weights), self.processes.partial(of_model)), strict=True
            )
        ]
        self.processes.all_gather_block_(phi)
        self.values = self.processes.all_reduce(self._partial(values[0]) + values[1])

    def gram(self) -> Tensor:
        """Return B B^T of the rows for phi, float64 (L, L)."""
        zero = self.offsets.new_zeros(len(self))
        columns = [
            cutting_plane_values(self.model_rows.planes(), zero, row.double()) for row in self.model_rows.dense()
        ]
        return self.processes.all_reduce(torch.stack(columns)) if columns else zero.view(0, 0)

    def along(self, direction: Tensor) -> Tensor:
        """Return B u for a direction u of phi, float64 (L,)."""
        zero = torch.zeros_like(self.offsets)
        return self.processes.all_reduce(
            cutting_plane_values(self.model_rows.planes(), zero, direction[self.block].double())
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors, with this rank's columns; `load_state_dict` restores it bit for bit."""
        state = {
            "weight_rows": self.weight_rows.entries[: len(self)],
            "model_rows": self.model_rows.entries[: len(self)],
            "scale": self.model_rows.scale[: len(self)],
            "offsets": self.offsets,
            "multipliers": self.multipliers,
            "age": self.age,
            "values": self.values,
        }
        if self._anchors is not None:
            state |= {"anchor_weights": self._anchors[0], "anchor_phi": self._anchors[1]}
        if self._anchor_values is not None:
            state |= {"anchor_value_weights": self._anchor_values[0], "anchor_value_phi": self._anchor_values[1]}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        count = len(state["offsets"])
        for rows, name in ((self.weight_rows, "weight_rows"), (self.model_rows, "model_rows")):
            rows.entries[:count] = state[name]
            rows.count = count
        self.model_rows.scale[:count] = state["scale"]
        device = self.offsets.device
        for name in ("offsets", "multipliers", "age", "values"):
            setattr(self, name, state[name].clone().to(device))

        def pair(kind: str) -> tuple[Tensor, Tensor] | None:
            names = f"{kind}_weights", f"{kind}_phi"
            one, other = (state[name].clone().to(device) if name in state else None for name in names)
            return None if one is None or other is None else (one, other)

        self._anchors, self._anchor_values = pair("anchor"), pair("anchor_value")


def free_memory(device: torch.device) -> int | None:
    """Return the bytes of free memory; None if the system does not report it, or on a GPU, whose allocator raises."""
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    for line in table.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _last(rows: Rows) -> Tensor | PackedSigns:
    last = slice(rows.count - 1, rows.count)
    if rows.storage == "sign":
        return PackedSigns(rows.entries[last], rows.scale[last], rows.size)
    return rows.entries[last]
