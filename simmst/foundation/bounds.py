"""Upper bounds of settings: one that no machine could serve is refused by name, before it costs memory or hours."""

from __future__ import annotations

from simmst.errors import ConfigError

MOST = 1_000_000_000  # of anything that is counted, where there is no closer bound
MOST_PARAMETERS = 250_000_000  # of a network: four gigabytes with gradients and the optimiser's state
MOST_WINDOW = 16_000_000  # numbers that one window may take on its way through a network


def at_most(name: str, value: float, most: float = MOST) -> None:
    """Refuse a setting that is too large.

    Raises:
        ConfigError: the setting is too large; the message names it, its value and the bound.

    Example:
        >>> at_most("epochs", 2_000_000_000)
        Traceback (most recent call last):
        ...
        simmst.errors.ConfigError: epochs is 2000000000; it must be at most 1000000000
    """
    if value > most:
        shown = f"{value:d}" if isinstance(value, int) and value < 10**24 else f"{min(value, 1.7e308):g}"
        raise ConfigError(f"{name} is {shown}; it must be at most {most:.15g}")


def refuse_too_large(parameters: float, window: float, settings: str) -> None:
    """Refuse a network by an estimate of its size.

    Args:
        parameters: approximate number of parameters of the network.
        window: approximate count of the numbers that one window takes on its way through it.
        settings: names of the settings that decide the two numbers, for the message.

    Raises:
        ConfigError: the network would be too large.
    """
    for what, size, most in (
        ("the network would have", parameters, MOST_PARAMETERS),
        ("a window would take", window, MOST_WINDOW),
    ):
        if size > most:
            unit = "parameters" if most == MOST_PARAMETERS else "numbers"
            raise ConfigError(
                f"{what} about {size:.2g} {unit}, more than the {most:.2g} allowed; make {settings} smaller"
            )
