"""Adapt the shipped weights to a few known days, and score them beside naive forecasts on the days that follow.

As a script:

    python examples/fine_tune.py                          # a simulated city, in seconds: far too little training
    python examples/fine_tune.py traffic.csv --horizon 24 --test-days 3 --full
"""

# %%
from simmst import Forecaster
from simmst.data import chronological_split, load
from simmst.simulation import surrogate_city

# %% [markdown]
# Settings. `short` trains for seconds, to show the steps. With `training = {}`, training takes its defaults.

# %%
data = ""  # your file; without one, a city is simulated
horizon = 3  # slots to forecast
test_days = 1  # last days of the series, which no training sees
short = {"epochs": 1, "samples_per_epoch": 256, "validation_samples": 256}
training = short

# %% tags=["active-py"]
import argparse

parser = argparse.ArgumentParser(description="Adapt the shipped weights to a few known days and score them.")
parser.add_argument("data", nargs="?", default=data, help="your file; without one, a city is simulated")
parser.add_argument("--horizon", type=int, default=horizon, help="slots to forecast")
parser.add_argument("--test-days", type=int, default=test_days, help="last days of the series, to score forecasts of")
parser.add_argument("--full", action="store_true", help="train with the default settings instead of for seconds")
options = parser.parse_args()
data, horizon, test_days = options.data, options.horizon, options.test_days
training = {} if options.full else short

# %% [markdown]
# The days are split in order: the last ones test, the ones before them decide when training stops, and the rest trains.

# %%
city = load(data) if data else surrogate_city(0, height=3, width=3, days=9, services=("internet",))
if city.surrogate:
    print("SURROGATE: the traffic is simulated")
split = chronological_split(city.num_steps, city.steps_per_day, test_days=test_days, validation_days=2)
known = city.slice_steps(0, split.test.start)
print(f"{city.num_cells} cells, {split.test.start} slots known, {len(split.test)} to test on")

# %% [markdown]
# `fit` starts from the shipped weights. It keeps them as they are unless the adapted ones are clearly better on the
# validation days.

# %%
adapted = Forecaster(horizon=horizon, training=training)
adapted.fit(known, validation_steps=len(split.validation))

# %% [markdown]
# The adapted weights, the shipped ones without training and the naive baselines forecast the same slots. The baselines
# are fitted to all slots before the test. A model that loses to them should not be used.

# %%
report = adapted.evaluate(city, split)
report.print()

# %% [markdown]
# The same numbers, to compute with. With four known days or fewer, nothing is adapted and only one row is ours.

# %%
mae = {row.name: row.overall_mae for row in report.rows}
best = min(mae, key=mae.__getitem__)
for name in ("Sim-MSTNet", "Sim-MSTNet, no training"):
    if name in mae:
        print(f"MAE of {name}: {mae[name]:.1f}")
print(f"least MAE: {mae[best]:.1f} of {best}")

# %% [markdown]
# Forecasts beyond the known days start from all traffic, without another fit.

# %%
forecast = adapted.update(city).predict(levels=(80,))
print(forecast.head(horizon).to_string(index=False))
