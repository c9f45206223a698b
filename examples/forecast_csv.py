"""Forecast the cells of a CSV file with the weights that ship with simmst, without training.

As a script:

    python examples/forecast_csv.py                       # simulates a small city and writes its CSV first
    python examples/forecast_csv.py traffic.csv --horizon 24 --out forecast.csv
"""

# %%
from pathlib import Path

from simmst import Forecaster
from simmst.data import load
from simmst.simulation import surrogate_city

# %% [markdown]
# Settings. With no file of your own, the example writes one.

# %%
data = ""  # your file: a row for each cell, time and value, or a column for each cell
horizon = 6  # slots to forecast
out = "forecast.csv"

# %% tags=["active-py"]
import argparse

parser = argparse.ArgumentParser(description="Forecast the cells of a CSV file without training.")
parser.add_argument("data", nargs="?", default=data, help="your CSV file; without one, a city is simulated")
parser.add_argument("--horizon", type=int, default=horizon, help="slots to forecast")
parser.add_argument("--out", default=out, help="file for the forecasts")
options = parser.parse_args()
data, horizon, out = options.data, options.horizon, options.out

# %% [markdown]
# A city to try it on: nine cells and eight days of hours. The shipped weights never saw its kind, because its
# parameters lie outside the prior of the cities that they learned from. The CSV has the columns `unique_id`, `ds`,
# `service` and `y`.

# %%
if not data:
    data = "surrogate_city.csv"
    city = surrogate_city(0, height=3, width=3, days=8, services=("call", "internet"))
    city.to_dataframe().to_csv(data, index=False)
    print(f"SURROGATE: {data} holds simulated traffic")

# %% [markdown]
# `load` finds the columns, the separator and the slot length. `layout.notes` says what it took for what.

# %%
traffic = load(data)
print(f"{traffic.num_cells} cells, {traffic.num_steps} slots of {traffic.step_minutes} minutes: {traffic.services}")
for note in traffic.layout.notes:
    print("note:", note)

# %% [markdown]
# One row for each cell, slot and service, with 80 % intervals, in the units of the file.

# %%
forecast = Forecaster.pretrained(horizon=horizon).predict(traffic, levels=(80,))
print(forecast.head(horizon).to_string(index=False))

forecast.to_csv(out, index=False)
print(f"{len(forecast)} forecasts are in {Path(out).resolve()}")
