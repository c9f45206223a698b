"""Compare a real city with simulated ones: which of its statistics would be unusual among them?

As a script:

    python examples/compare_cities.py                     # without real data: a SURROGATE
    python examples/compare_cities.py traffic.csv --cities 100 --out report
    SIMMST_DATA=folder python examples/compare_cities.py milan
"""

# %%
from simmst.data import load
from simmst.realism import compare
from simmst.simulation import surrogate_city

# %%
data = ""  # a file, or the name of one in the folder that SIMMST_DATA names
cities = 20  # simulated cities to compare with; 100 give steadier bands
out = ""  # folder for realism.json and the plots; empty writes none

# %% tags=["active-py"]
import argparse

parser = argparse.ArgumentParser(description="Compare a real city with simulated ones.")
parser.add_argument("data", nargs="?", default=data, help="a file, or the name of one in the folder SIMMST_DATA")
parser.add_argument("--cities", type=int, default=cities, help="number of simulated cities, at least 20")
parser.add_argument("--out", default=out, help="folder for realism.json and the plots")
options = parser.parse_args()
data, cities, out = options.data, options.cities, options.out

# %% [markdown]
# Without real data, a second simulated city stands in. Its parameters lie outside the prior of the others, and
# everything that is printed of it says SURROGATE.

# %%
city = load(data) if data else surrogate_city(1, height=5, width=5, days=3, services=("internet",))

# %% [markdown]
# Each simulated city gets the shape, the days, the slots and the gaps of the real one. The report asks of every
# statistic whether the real value lies between the 5 % and the 95 % quantile of the simulated ones.

# %%
report = compare([city], cities=cities, seed=0)
report.print()

# %% [markdown]
# The same, to compute with. One statistic in ten lies outside by chance.

# %%
for comparison in report.files:
    outside = [row.statistic.key for row in comparison.outside]
    print(f"{comparison.name}: {len(outside)} of {len(comparison.rows)} statistics lie outside the band: {outside}")

# %%
if out:
    for path in report.save(out):
        print(path)
