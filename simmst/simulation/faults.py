"""Faults between a counter and a file: dips, maintenance, outages, stuck counters, missing slots."""

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
    "maintenance_per_week": (0.0, 14.0, "periods per week"),
    "maintenance_duration_h": (0.1, 48.0, "hours"),
    "maintenance_reach": (0.0, 1.0, "fraction of the sectors"),
    "outages_per_sector_week": (0.0, 20.0, "outages per sector and week"),
    "outage_duration_h": (0.1, 500.0, "hours"),
    "outage_missing": (0.0, 1.0, "fraction of the sectors"),
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
    """Faults of an operator's counters; the defaults have none.

    Durations are means of exponential laws unless stated otherwise. An outage, a maintenance period, a repetition and
    a gap last at least one slot.

    Attributes:
        dip_share: share of the days on which all counters drop at the same hour, as when they are read and reset.
        dip_hour: local hour of the drop.
        dip_duration_h: duration of the drop, the same every day.
        dip_level: fraction of the traffic that is still counted during the drop.
        dip_log_std: log spread of that fraction over days and cells.
        maintenance_per_week: maintenance periods per week, mostly at night, in which some of the sectors are silent.
        maintenance_duration_h: mean duration of a maintenance period, which follows a Gamma law.
        maintenance_reach: expected share of the sectors that are silent in a maintenance period.
        outages_per_sector_week: outages per sector and week; the cells that the sector serves best are silent.
        outage_duration_h: mean duration of an outage.
        outage_missing: share of the sectors whose outages or maintenance show as missing slots; those of the other
            sectors show as zeros.
        stuck_per_cell_week: times per cell and week that the counter of one service repeats its last number.
        stuck_duration_h: mean duration of the repetition.
        zero_share: share of the slots that a counter reports as zero for no reason.
        spike_share: share of the slots in which the reported number is too large.
        spike_log_std: scale of the log excess of these numbers.
        city_gaps_per_week: gaps per week of the whole city, as when a file is lost.
        city_gap_duration_h: mean duration of such a gap.
        rounding: rounding step of the published numbers, relative to the mean of a slot; 0 does not round.

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
        """Whether any kind of fault can occur."""
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
