"""Make a Hugging Face Informer compute its ProbSparse attention on simmst's operators.

As a script:

    pip install 'simmst[huggingface]'
    python examples/swap_layers.py
    python examples/swap_layers.py --context 720 --width 64
"""

# %%
import torch
from transformers import InformerConfig, InformerForPrediction

from simmst.compat import restore, swap

# %%
context, horizon, width = 96, 24, 32  # slots seen, slots forecast, features
batch = 4

# %% tags=["active-py"]
import argparse

parser = argparse.ArgumentParser(description="Swap simmst's attention into a Hugging Face Informer.")
parser.add_argument("--context", type=int, default=context, help="slots that the model sees")
parser.add_argument("--horizon", type=int, default=horizon, help="slots to forecast")
parser.add_argument("--width", type=int, default=width, help="features of the model")
options = parser.parse_args()
context, horizon, width = options.context, options.horizon, options.width

# %% [markdown]
# Any Informer will do. With `InformerForPrediction.from_pretrained(...)`, swap after loading. Dropout is 0 here, so
# that training steps can be compared.

# %%
torch.manual_seed(0)
lags = [1, 2, 3]
config = InformerConfig(
    prediction_length=horizon,
    context_length=context,
    lags_sequence=lags,
    num_time_features=1,
    d_model=width,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    encoder_layerdrop=0.0,
    decoder_layerdrop=0.0,
    num_parallel_samples=10,
)
model = InformerForPrediction(config)

# %% [markdown]
# A batch of noisy waves in the place of traffic.

# %%
slots = torch.arange(context + max(lags) + horizon)
waves = 2 + torch.sin(2 * torch.pi * slots / 24) + 0.1 * torch.randn(batch, len(slots))
hour = ((slots % 24) / 24 - 0.5).expand(batch, -1)[..., None]
past = context + max(lags)
windows = {
    "past_values": waves[:, :past],
    "past_time_features": hour[:, :past],
    "past_observed_mask": torch.ones(batch, past),
    "future_values": waves[:, past:],
    "future_time_features": hour[:, past:],
}


def step() -> float:
    """Return the loss of a training step."""
    torch.manual_seed(1)  # the layers draw keys
    model.train().zero_grad()
    loss = model(**windows).loss
    loss.backward()
    return loss.item()


# %% [markdown]
# With `exact=True` the layers select what the library would, so the loss is the same. Without it they select as in the
# paper, and the cost no longer grows with the square of the length. Parameters, state dicts and optimisers stay as they
# are.

# %%
theirs = step()
layers = swap(model, exact=True)
exact = step()
swap(model)
ours = step()
print(f"{layers} layers swapped")
print(f"loss: {theirs:.5f} with the library's layers, {exact:.5f} with exact=True, {ours:.5f} by default")

# %% [markdown]
# A swapped model generates like any other. `restore` brings the library's layers back.

# %%
given = {name: value for name, value in windows.items() if name != "future_values"}
samples = model.eval().generate(**given).sequences
print(f"generated {tuple(samples.shape)}: windows, samples, slots")
print(f"{restore(model)} layers restored")
