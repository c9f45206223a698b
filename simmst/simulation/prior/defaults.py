"""Default laws: of usual cities, of the training prior with its unusual cities, and of surrogates outside it."""

from __future__ import annotations

from simmst.simulation.config import SCENARIOS
from simmst.simulation.habits import DAY_SHAPES
from simmst.simulation.prior.distributions import (
    Categorical,
    Dates,
    Distribution,
    LogUniform,
    Mixture,
    TruncatedNormal,
    Uniform,
    sometimes,
)


def usual_parameters() -> dict[str, Distribution]:
    """Return the laws of cities like Milan and Trento: days of the same shape, counters that work, one scale."""
    return {
        "start": Dates("2013-01-01", "2013-12-31"),
        "scenario": Categorical(SCENARIOS, (0.45, 0.45, 0.1)),
        "carrier_ghz": LogUniform(0.8, 3.5),
        "inter_site_distance_m": LogUniform(300.0, 1200.0),
        "site_jitter": Uniform(0.05, 0.35),
        "antenna_height_m": Uniform(10.0, 35.0),
        "tilt_deg": Uniform(2.0, 12.0),
        "transmit_power_dbm": Uniform(38.0, 49.0),
        "nlos_slope": Uniform(0.85, 1.15),
        "shadowing_db": Uniform(4.0, 9.0),
        "shadowing_correlation_m": LogUniform(13.0, 120.0),
        "handover_softness_db": Uniform(2.0, 12.0),
        "users_per_cell": LogUniform(80.0, 1200.0),
        "density_log_std": Uniform(0.9, 2.3),
        "density_correlation_m": LogUniform(800.0, 6000.0),
        "density_fine_share": Uniform(0.0, 0.3),
        "density_fine_correlation_m": Uniform(100.0, 400.0),
        "density_skew": Uniform(-0.15, 0.45),
        "centre_slope_per_km": Uniform(0.0, 0.25),
        "void_share": Uniform(0.0, 0.15),
        "land_use_contrast": Uniform(0.4, 2.5),
        "land_use_correlation_m": LogUniform(200.0, 2000.0),
        "service_log_std": Uniform(0.15, 0.45),
        "diurnal_amplitude": Uniform(0.65, 1.25),
        "presence_amplitude": Uniform(0.3, 1.4),
        "phase_h": Uniform(-1.5, 1.5),
        "land_use_phase_std_h": Uniform(0.0, 1.5),
        "profile_log_std": LogUniform(0.01, 0.35),
        "land_use_profile_log_std": LogUniform(0.01, 0.35),
        "weekend_factor": Uniform(0.65, 1.35),
        "weekend_delay_h": Uniform(0.5, 2.0),
        "holiday_rest": Uniform(0.6, 1.2),
        "season_rest": Uniform(0.0, 1.3),
        "noise_log_std": Uniform(0.03, 0.5),
        # Hourly autocorrelation of the noise from 0.3 to 0.94.
        "noise_correlation_h": LogUniform(0.7, 16.0),
        "noise_shared_share": Uniform(0.0, 0.6),
        "noise_city_share": LogUniform(0.0002, 0.05),
        "load_flicker_log_std": LogUniform(0.004, 0.18),
        "flicker_log_std": Uniform(0.0, 0.03),
        "burst_rate_per_sector_hour": LogUniform(0.002, 0.03),
        "burst_gain": LogUniform(0.3, 3.0),
        "burst_pareto_alpha": Uniform(1.4, 2.5),
        "burst_duration_h": LogUniform(0.15, 1.2),
        "events_per_week": Uniform(0.0, 4.0),
        "event_gain": LogUniform(1.0, 10.0),
        "coverage_spread": Uniform(0.7, 1.0),
        "reporting_scale": LogUniform(0.3, 2.0),
        "missing_share": LogUniform(1e-4, 0.02),
        "missing_duration_h": LogUniform(0.3, 4.0),
        "call.rate_per_user_hour": LogUniform(0.3, 2.0),
        "sms.rate_per_user_hour": LogUniform(0.3, 2.0),
        "internet.rate_per_user_hour": LogUniform(5.0, 40.0),
        "sms.hour_peak": Uniform(0.0, 0.15),
        "sms.hour_step": Uniform(0.0, 0.6),
        "internet.dispersion": Uniform(0.5, 3.0),
    }


def surrogate_parameters() -> dict[str, Distribution]:
    """Return the laws of surrogate cities: the usual laws, some of them moved outside the bounds of the default."""
    return {**usual_parameters(), **_SURROGATE}


def default_parameters() -> dict[str, Distribution]:
    """Return the laws of the training prior: the usual laws, and those of other places and operators."""
    usual = usual_parameters()
    wider = {name: Mixture((usual[name], *laws), shares) for name, (laws, shares) in _SOME.items()}
    return {**usual, **wider, **_CELLS, **_HABITS, **_FAULTS}


# Laws that some cities have in place of the usual law, and the shares: of the usual law first, then of each of these.
_SOME: dict[str, tuple[tuple[Distribution, ...], tuple[float, ...]]] = {
    "users_per_cell": ((LogUniform(1200.0, 2e5), LogUniform(1.0, 80.0)), (0.74, 0.14, 0.12)),
    "density_log_std": ((Uniform(0.2, 0.9),), (0.88, 0.12)),
    "density_fine_share": ((Uniform(0.3, 1.0),), (0.72, 0.28)),
    "diurnal_amplitude": ((Uniform(0.1, 0.65),), (0.87, 0.13)),
    "weekend_factor": ((LogUniform(1.35, 3.0),), (0.94, 0.06)),
    "profile_log_std": ((Uniform(0.35, 0.8),), (0.92, 0.08)),
    "noise_log_std": ((LogUniform(0.003, 0.03), Uniform(0.5, 0.9)), (0.82, 0.12, 0.06)),
    "noise_city_share": ((Uniform(0.05, 0.6),), (0.9, 0.1)),
    "load_flicker_log_std": ((LogUniform(0.18, 0.45),), (0.92, 0.08)),
    "flicker_log_std": ((LogUniform(0.03, 0.35),), (0.75, 0.25)),
    "burst_rate_per_sector_hour": ((LogUniform(0.03, 0.2),), (0.93, 0.07)),
    "coverage_spread": ((Uniform(0.0, 0.7),), (0.78, 0.22)),
    "reporting_scale": ((LogUniform(1e-4, 1e4),), (0.5, 0.5)),
    "missing_share": ((LogUniform(0.02, 0.15),), (0.92, 0.08)),
    "missing_duration_h": ((LogUniform(4.0, 36.0),), (0.9, 0.1)),
    "internet.dispersion": ((LogUniform(3.0, 60.0),), (0.85, 0.15)),
}
# Cell sizes other than Milan's, which is the default of `CityConfig`.
_CELLS: dict[str, Distribution] = {"cell_m": sometimes(0.25, LogUniform(150.0, 2000.0), otherwise=235.0)}
_HABITS: dict[str, Distribution] = {
    "habits.day_shape": Categorical(tuple(DAY_SHAPES), (0.65, 0.06, 0.07, 0.07, 0.03, 0.03, 0.02, 0.02, 0.02, 0.03)),
    "habits.day_shape_strength": Uniform(0.3, 1.2),
    "habits.noon_log_peak": sometimes(0.25, Uniform(0.1, 0.9)),
    "habits.night_log_depth": Mixture((Categorical((0.0,)), Uniform(0.2, 2.0), Uniform(-0.8, 0.0)), (0.7, 0.2, 0.1)),
    "habits.unrest": sometimes(0.25, LogUniform(0.02, 0.5), otherwise=1.0),
    "habits.clock_error_h": Categorical(
        tuple(float(hours) for hours in range(-11, 13)), (*(0.01,) * 11, 0.77, *(0.01,) * 12)
    ),
    "habits.weekend_start": Categorical(tuple(range(7)), (0.02, 0.02, 0.02, 0.02, 0.07, 0.83, 0.02)),
    "habits.weekday_log_std": sometimes(0.4, LogUniform(0.01, 0.4)),
    "habits.free_day_share": sometimes(0.15, Uniform(0.01, 0.15)),
    "habits.trend_per_week": sometimes(0.25, Uniform(-0.3, 0.3)),
    "habits.drift_log_std": sometimes(0.35, LogUniform(0.02, 0.5)),
    "habits.level_changes_per_week": sometimes(0.2, LogUniform(0.01, 0.5)),
    "habits.level_change_log_std": LogUniform(0.1, 1.2),
}
_FAULTS: dict[str, Distribution] = {
    "faults.dip_share": Mixture((Categorical((0.0, 1.0), (0.87, 0.13)), Uniform(0.1, 1.0)), (0.95, 0.05)),
    "faults.dip_hour": Categorical(
        tuple(float(hour) for hour in range(24)), (0.1, 0.1, 0.12, 0.16, 0.16, 0.1, 0.08, *(0.01,) * 16, 0.02)
    ),
    "faults.dip_duration_h": Mixture((Categorical((1.0,)), LogUniform(0.25, 3.0)), (0.6, 0.4)),
    "faults.dip_level": LogUniform(0.003, 0.2),
    "faults.dip_log_std": Uniform(0.0, 1.0),
    "faults.maintenance_per_week": sometimes(0.1, LogUniform(0.2, 2.0)),
    "faults.maintenance_duration_h": LogUniform(0.5, 6.0),
    "faults.maintenance_reach": Uniform(0.1, 1.0),
    "faults.outages_per_sector_week": sometimes(0.2, LogUniform(0.005, 0.2)),
    "faults.outage_duration_h": LogUniform(1.0, 72.0),
    "faults.outage_missing": Mixture((Categorical((0.0, 1.0)), Uniform(0.0, 1.0)), (0.7, 0.3)),
    "faults.stuck_per_cell_week": sometimes(0.1, LogUniform(0.02, 2.0)),
    "faults.stuck_duration_h": LogUniform(1.0, 36.0),
    "faults.zero_share": sometimes(0.12, LogUniform(3e-4, 0.05)),
    "faults.spike_share": sometimes(0.08, LogUniform(1e-4, 0.01)),
    "faults.spike_log_std": Uniform(0.5, 2.0),
    "faults.city_gaps_per_week": sometimes(0.15, LogUniform(0.1, 2.0)),
    "faults.city_gap_duration_h": LogUniform(0.3, 12.0),
    "faults.rounding": sometimes(0.12, LogUniform(1e-3, 0.3)),
}
_SURROGATE: dict[str, Distribution] = {
    "inter_site_distance_m": Uniform(1250.0, 1700.0),
    "density_log_std": TruncatedNormal(2.45, 0.1, 2.32, 2.7),
    "diurnal_amplitude": Uniform(1.32, 1.45),
    "phase_h": Uniform(1.6, 2.4),
    "weekend_factor": Uniform(0.5, 0.63),
    "weekend_delay_h": Uniform(2.05, 2.6),
    "call.rate_per_user_hour": Uniform(2.1, 3.0),
    "sms.rate_per_user_hour": Uniform(2.1, 3.0),
    "internet.rate_per_user_hour": Uniform(42.0, 60.0),
}
