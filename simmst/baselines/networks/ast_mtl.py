"""AST-MTL: a graph-recurrent encoder for each task, one shared by all, and attention of each task to the shared one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from simmst.baselines.networks.config import integer
from simmst.baselines.networks.graph import Graph, GraphConfig, propagate, symmetric
from simmst.baselines.networks.inputs import View
from simmst.baselines.networks.network import Network


@dataclass(frozen=True)
class ASTMTLConfig(GraphConfig):
    """Settings of `ASTMTL`.

    Args:
        graph_width: features of the graph convolutions.
        width: features of the recurrent states.
    """

    graph_width: int = integer(12)
    width: int = integer(150)


class ASTMTL(Network):
    """Encode each task by graph convolutions and a GRU, all tasks by a shared GRU, and decode what each attends to.

    The attention of a task has the shared states as queries, and the task's own states as keys and values.

    Source: Buroni, Lebichot & Bontempi 2021, "AST-MTL: an attention-based multi-task learning strategy for traffic
    forecasting" (IEEE Access): two graph convolutions of 12 and GRUs of 150 for each task, a shared network over the
    concatenation, GRU decoders and node-wise heads. Adapted: tasks are services on one grid. Everything after the graph
    convolutions is node-wise with weights shared by the nodes, so it is computed for the target cell only. The input of
    a decoder is its last forecast and the memory of the slot.
    """

    config_class = ASTMTLConfig

    def __init__(self, config: ASTMTLConfig) -> None:
        super().__init__(config)
        width, narrow = config.width, config.graph_width
        channels = self.inputs.num_features + self.marks_in_tokens
        self.graph = Graph(config)
        self.first = nn.ModuleList(nn.Linear(channels, narrow) for _ in config.services)
        self.second = nn.ModuleList(nn.Linear(narrow, narrow) for _ in config.services)
        self.encoders = nn.ModuleList(nn.GRU(narrow, width, batch_first=True) for _ in config.services)
        self.shared = nn.GRU(narrow * config.num_tasks, width, batch_first=True)
        self.decoders = nn.ModuleList(nn.GRUCell(1 + channels, width) for _ in config.services)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in config.services)

    def forecast(self, view: View) -> Tensor:
        """Return (B, T_out, K)."""
        weights = self.graph(view)
        loops = torch.diag_embed(view.inside.to(weights.dtype))
        matrix = symmetric(weights + loops)  # Kipf & Welling 2017, Eq. 2
        graphs = [self._convolve(view, matrix, task) for task in range(self.config.num_tasks)]
        common, _ = self.shared(torch.cat(graphs, dim=-1))
        return torch.stack(
            [self._decode(view, task, self._attend(common, graphs[task], task)) for task in range(len(graphs))], dim=-1
        )

    def _convolve(self, view: View, matrix: Tensor, task: int) -> Tensor:
        """Apply two graph convolutions to a task's tokens, at the target cell: (B, T, graph_width)."""
        tokens = view.past[:, :, task]  # (B, T, N, F)
        marks = view.past_marks[:, :, None].expand(-1, -1, tokens.shape[2], -1)
        hidden = functional.relu(self.first[task](propagate(matrix, self._with_marks(tokens, marks))))
        centre = hidden.shape[2] // 2
        return functional.relu(self.second[task](propagate(matrix[:, centre : centre + 1], hidden)[:, :, 0]))

    def _attend(self, common: Tensor, graph: Tensor, task: int) -> Tensor:
        """Return what the last shared state attends to among the task's states, (B, width)."""
        own, _ = self.encoders[task](graph)
        scores = common[:, -1:] @ own.transpose(1, 2) / math.sqrt(self.config.width)
        attended: Tensor = (torch.softmax(scores, dim=-1) @ own)[:, 0]
        return attended

    def _decode(self, view: View, task: int, state: Tensor) -> Tensor:
        """Decode a task step by step from a state, (B, T_out)."""
        told = self._with_marks(view.future[:, :, task], view.future_marks)
        own, forecasts = state.new_zeros(len(state), 1), []
        for step in range(told.shape[1]):
            state = self.decoders[task](torch.cat((own, told[:, step]), dim=-1), state)
            own = self.heads[task](state)
            forecasts.append(own[:, 0])
        return torch.stack(forecasts, dim=-1)
