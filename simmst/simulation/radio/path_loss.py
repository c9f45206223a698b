"""Path loss and line-of-sight probability of 3GPP TR 38.901, for urban macro, urban micro and rural macro sites."""

from __future__ import annotations

import numpy as np

from simmst.errors import ConfigError

SPEED_OF_LIGHT = 3.0e8  # m/s, the value of the standard
EFFECTIVE_ENVIRONMENT_M = 1.0


def line_of_sight_probability(scenario: str, distance_2d_m: np.ndarray) -> np.ndarray:
    """Return the probability that a user on the street sees the site.

    Args:
        scenario: "UMa", "UMi" or "RMa".
        distance_2d_m: distance on the ground, any shape.

    Raises:
        ConfigError: the scenario is unknown.

    Source:
        3GPP TR 38.901, Table 7.4.2-1, for users up to 13 m above ground.

    Example:
        >>> line_of_sight_probability("UMi", np.array([18.0, 100.0])).round(4).tolist()
        [1.0, 0.231]
    """
    distance = np.asarray(distance_2d_m, dtype=np.float64)
    if scenario == "RMa":
        return np.where(distance <= 10, 1.0, np.exp(-(distance - 10) / 1000))
    decay = {"UMa": 63.0, "UMi": 36.0}.get(scenario)
    if decay is None:
        raise ConfigError(f"scenario is {scenario!r}; choose one of UMa, UMi, RMa")
    near = 18 / np.maximum(distance, 18.0)
    return near + np.exp(-distance / decay) * (1 - near)


def path_loss_db(
    scenario: str,
    distance_2d_m: np.ndarray,
    *,
    line_of_sight: np.ndarray | bool,
    carrier_ghz: float,
    antenna_height_m: float,
    user_height_m: float = 1.5,
    nlos_slope: float = 1.0,
    street_width_m: float = 20.0,
    building_height_m: float = 5.0,
) -> np.ndarray:
    """Return the mean path loss in dB.

    Args:
        scenario: "UMa", "UMi" (street canyon) or "RMa".
        distance_2d_m: distance on the ground, any shape; the standard holds from 10 m on.
        line_of_sight: whether the link has line of sight, broadcast against the distance.
        carrier_ghz: carrier frequency.
        antenna_height_m: height of the base station.
        user_height_m: height of the user.
        nlos_slope: factor on the distance exponent without line of sight; 1 is the standard's value.
        street_width_m: mean width of streets (RMa).
        building_height_m: mean height of buildings (RMa).

    Returns:
        float64, the shape of the distance.

    Raises:
        ConfigError: the scenario is unknown.

    Source:
        3GPP TR 38.901, Table 7.4.1-1.

    Example:
        >>> path_loss_db("UMi", np.array([100.0]), line_of_sight=True, carrier_ghz=2.0, antenna_height_m=10.0).round(2)
        array([80.45])
    """
    ground = np.asarray(distance_2d_m, dtype=np.float64)
    drop = antenna_height_m - user_height_m
    log_distance = 0.5 * np.log10(ground**2 + drop**2)
    log_carrier = np.log10(carrier_ghz)
    if scenario == "RMa":
        sighted = _rural_sighted(ground, log_distance, carrier_ghz, antenna_height_m, user_height_m, building_height_m)
        ratio = building_height_m / antenna_height_m
        blocked = (
            161.04
            - 7.1 * np.log10(street_width_m)
            + 7.5 * np.log10(building_height_m)
            - (24.37 - 3.7 * ratio**2) * np.log10(antenna_height_m)
            + nlos_slope * (43.42 - 3.1 * np.log10(antenna_height_m)) * (log_distance - 3)
            + 20 * log_carrier
            - (3.2 * np.log10(11.75 * user_height_m) ** 2 - 4.97)
        )
    elif scenario in ("UMa", "UMi"):
        macro = scenario == "UMa"
        constant, slope, beyond = (28.0, 22.0, 9.0) if macro else (32.4, 21.0, 9.5)
        effective = (antenna_height_m - EFFECTIVE_ENVIRONMENT_M) * (user_height_m - EFFECTIVE_ENVIRONMENT_M)
        breakpoint_m = 4 * effective * carrier_ghz * 1e9 / SPEED_OF_LIGHT
        near = slope * log_distance
        far = 40 * log_distance - beyond * np.log10(breakpoint_m**2 + drop**2)
        sighted = constant + 20 * log_carrier + np.where(ground <= breakpoint_m, near, far)
        if macro:
            blocked = 13.54 + nlos_slope * 39.08 * log_distance + 20 * log_carrier - 0.6 * (user_height_m - 1.5)
        else:
            blocked = 22.4 + nlos_slope * 35.3 * log_distance + 21.3 * log_carrier - 0.3 * (user_height_m - 1.5)
    else:
        raise ConfigError(f"scenario is {scenario!r}; choose one of UMa, UMi, RMa")
    return np.where(line_of_sight, sighted, np.maximum(sighted, blocked))


def _rural_sighted(
    ground: np.ndarray,
    log_distance: np.ndarray,
    carrier_ghz: float,
    antenna_height_m: float,
    user_height_m: float,
    building_height_m: float,
) -> np.ndarray:
    """Return the RMa path loss with line of sight: two slopes that meet at the breakpoint."""
    power = building_height_m**1.72

    def near(log10_m: np.ndarray | float) -> np.ndarray:
        loss: np.ndarray = (
            20 * np.log10(40 * np.pi * carrier_ghz / 3)
            + 20 * np.asarray(log10_m)
            + min(0.03 * power, 10.0) * np.asarray(log10_m)
            - min(0.044 * power, 14.77)
            + 0.002 * np.log10(building_height_m) * 10 ** np.asarray(log10_m)
        )
        return loss

    breakpoint_m = 2 * np.pi * antenna_height_m * user_height_m * carrier_ghz * 1e9 / SPEED_OF_LIGHT
    log_break = np.log10(breakpoint_m)
    return np.where(ground <= breakpoint_m, near(log_distance), near(log_break) + 40 * (log_distance - log_break))
