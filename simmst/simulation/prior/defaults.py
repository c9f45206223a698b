"""The laws of the training prior, and of the surrogate cities that lie outside it."""

from __future__ import annotations

from simmst.simulation.config import SCENARIOS
from simmst.simulation.prior.distributions import (
    Categorical,
    Dates,
    Distribution,
    LogUniform,
    TruncatedNormal,
    Uniform,
)


def default_parameters() -> dict[str, Distribution]:
    """Return the laws of the training prior, wide enough that real cities should lie within."""
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
    """Return the laws of surrogate cities: the default's, with some that lie outside its bounds."""
    return {**default_parameters(), **_SURROGATE}


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
