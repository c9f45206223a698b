"""What goes wrong between a counter and a file: dips, maintenance, outages, counters that stick, lost slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from simmst.simulation.services import check_fields, check_range

# name -> (lowest, highest, unit); both ends are allowed.
FAULT_RANGES: dict[str, tuple[float, float, str]] = {
    "dip_share": (0.0, 1.0, "fraction of the days"),
    "dip_hour": (0.0, 24.0, "local hour"),
    "dip_duration_h": (0.05, 12.0, "hours"),
    "dip_level": (0.0, 1.0, "fraction that is still counted"),
    "dip_log_std": (0.0, 3.0, "natural log"),
    "maintenance_per_week": (0.0, 14.0, "windows per week"),
    "maintenance_duration_h": (0.1, 48.0, "hours"),
    "maintenance_reach": (0.0, 1.0, "fraction of the sectors"),
    "outages_per_sector_week": (0.0, 20.0, "outages per sector and week"),
    "outage_duration_h": (0.1, 500.0, "hours"),
    "outage_missing": (0.0, 1.0, "fraction of the outages and windows"),
    "stuck_per_cell_week": (0.0, 50.0, "times per cell and week"),
    "stuck_duration_h": (0.1, 200.0, "hours"),
    "zero_share": (0.0, 0.9, "fraction of the slots of a cell"),
    "spike_share": (0.0, 0.5, "fraction of the slots of a cell"),
    "spike_log_std": (0.0, 3.0, "natural log"),
    "city_gaps_per_week": (0.0, 50.0, "gaps per week"),
    "city_gap_duration_h": (0.05, 200.0, "hours"),
    "rounding": (0.0, 10.0, "fraction of the mean of a slot"),
}


@dataclass(frozen=True)
class CounterFaults:
    """How the numbers of an operator fall short of the traffic; all defaults report it faithfully.

    Durations are means of exponential laws unless said, and never shorter than a slot.

    Attributes:
        dip_share: share of the days on which all counters drop at the same hour, as where they are read and reset.
        dip_hour: local hour at which they do.
        dip_duration_h: for how long, always.
        dip_level: what is left of the traffic meanwhile.
        dip_log_std: log spread of what is left over days and cells.
        maintenance_per_week: windows, mostly at night, in which a part of the sectors is silent.
        maintenance_duration_h: how long they last.
        maintenance_reach: share of the sectors that a window concerns.
        outages_per_sector_week: outages of single sectors; the cells that they serve best are silent.
        outage_duration_h: how long they last.
        outage_missing: share of the outages and windows that show as missing slots; the others show as zeros.
        stuck_per_cell_week: how often a counter of one service repeats its last number.
        stuck_duration_h: for how long.
        zero_share: share of the slots that a counter reports as zero for no reason.
        spike_share: share of the slots with a wrong, too large number.
        spike_log_std: scale of their log excess.
        city_gaps_per_week: gaps of the whole city, as where a file was lost.
        city_gap_duration_h: how long they last.
        rounding: step of the published numbers, relative to the mean of a slot; 0 does not round.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> CounterFaults(dip_share=1.0, dip_level=0.01).any
        True
    """

    dip_share: float = 0.0
    dip_hour: float = 4.0
    dip_duration_h: float = 1.0
    dip_level: float = 0.01
    dip_log_std: float = 0.5
    maintenance_per_week: float = 0.0
    maintenance_duration_h: float = 3.0
    maintenance_reach: float = 0.5
    outages_per_sector_week: float = 0.0
    outage_duration_h: float = 12.0
    outage_missing: float = 0.0
    stuck_per_cell_week: float = 0.0
    stuck_duration_h: float = 4.0
    zero_share: float = 0.0
    spike_share: float = 0.0
    spike_log_std: float = 1.0
    city_gaps_per_week: float = 0.0
    city_gap_duration_h: float = 2.0
    rounding: float = 0.0

    def __post_init__(self) -> None:
        """Check every value."""
        for name, (low, high, unit) in FAULT_RANGES.items():
            check_range(f"CounterFaults.{name}", getattr(self, name), low, high, unit)

    @property
    def any(self) -> bool:
        """Whether anything goes wrong at all."""
        rates = ("dip_share", "maintenance_per_week", "outages_per_sector_week", "stuck_per_cell_week", "zero_share",
                 "spike_share", "city_gaps_per_week", "rounding")  # fmt: skip
        return any(getattr(self, name) > 0 for name in rates)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain, JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CounterFaults:
        """Rebuild from `to_dict`; fields left out take their defaults.

        Raises:
            ConfigError: a key is unknown or a value is out of range.
        """
        return cls(**check_fields(cls, values))
