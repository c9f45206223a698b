"""Find the wrong labels of a classification problem by re-weighting its samples.

As a script:

    python examples/clean_labels.py
    python examples/clean_labels.py --wrong 0.4 --steps 1000
"""

# %%
import torch
from torch import Tensor, nn

from simmst.sim2real import ReweightingConfig, reweight

# %%
wrong_share = 0.3  # share of the labels that are flipped
number = 300  # cheap samples, some of them with a wrong label
trusted_number = 30  # samples with labels that you trust
steps = 400

# %% tags=["active-py"]
import argparse

parser = argparse.ArgumentParser(description="Find wrong labels by re-weighting.")
parser.add_argument("--wrong", type=float, default=wrong_share, help="share of the labels that are flipped")
parser.add_argument("--steps", type=int, default=steps, help="steps of the re-weighting")
options = parser.parse_args()
wrong_share, steps = options.wrong, options.steps

# %% [markdown]
# Two spirals that wind around each other, one for each class.

# %%
generator = torch.Generator().manual_seed(0)


def spirals(number: int) -> tuple[Tensor, Tensor]:
    """Return points (n, 2) and their classes (n,)."""
    label = torch.randint(0, 2, (number,), generator=generator)
    turn = 3 * torch.rand(number, generator=generator)
    angle = turn + torch.pi * label
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], 1)
    return points + 0.1 * torch.randn(number, 2, generator=generator), label


# %% [markdown]
# Many samples with some wrong labels, and three small sets with right ones: `trusted` teaches the weights, `chooses`
# chooses among the models, and `test` is seen by neither.

# %%
points, label = spirals(number)
wrong = torch.rand(number, generator=generator) < wrong_share
noisy = torch.where(wrong, 1 - label, label)
trusted, chooses, test = spirals(trusted_number), spirals(trusted_number), spirals(500)

# %% [markdown]
# A module and a loss with one number a sample are all that `reweight` needs. The solvers `unweighted` and `real-only`
# show what the weights bring: the first learns from all labels alike, the second from the trusted samples alone.


# %%
def cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of each sample, (n,)."""
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def classifier() -> nn.Module:
    """Return a small network, the same at each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))


config = ReweightingConfig(steps=steps, inner_lr=2.0)
found = {}
for solver in ("unweighted", "real-only", "cutting-plane"):
    model = classifier()
    found[solver] = reweight(
        model, cross_entropy, (points, noisy), trusted, validation=chooses, solver=solver, config=config
    )
    accuracy = float((model(test[0]).argmax(1) == test[1]).double().mean())
    print(f"{solver:14} accuracy on the test points {accuracy:.3f}")

# %% [markdown]
# The weights lie between 0 and 1, and start at 0.5. Samples with the lowest ones are the first to look at.

# %%
weights = found["cutting-plane"].weights
print(f"{int(wrong.sum())} of {number} labels are wrong")
print(f"mean weight: {weights[~wrong].mean():.3f} of right labels, {weights[wrong].mean():.3f} of wrong ones")
suspects = weights.argsort()[: int(wrong.sum())]
print(f"of the {len(suspects)} lowest weights, {int(wrong[suspects].sum())} belong to wrong labels")
