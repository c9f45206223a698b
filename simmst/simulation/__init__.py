"""Simulated cities: radio coverage, traffic, and what an operator would publish of it."""

from __future__ import annotations

from simmst.simulation.city import SimulatedCity, simulate_both, simulate_cities, simulate_city, surrogate_city
from simmst.simulation.config import CityConfig
from simmst.simulation.faults import CounterFaults
from simmst.simulation.habits import Habits
from simmst.simulation.prior.believed import Believed
from simmst.simulation.prior.distributions import Categorical, Dates, LogUniform, Mixture, TruncatedNormal, Uniform
from simmst.simulation.prior.domain_prior import DomainPrior
from simmst.simulation.radio.association import Association
from simmst.simulation.radio.built_environment import BuiltEnvironment
from simmst.simulation.radio.ray_tracing import RayTracedRadio
from simmst.simulation.radio.statistical import Coverage, RadioModel, StatisticalRadio
from simmst.simulation.reporting.official_files import CountryRows, write_official_files
from simmst.simulation.reporting.operator import OperatorReporting, ReportingModel
from simmst.simulation.services import DEFAULT_SERVICES, ServiceConfig
from simmst.simulation.traffic.shared_presence import SharedPresenceTraffic, TrafficModel

__all__ = [
    "DEFAULT_SERVICES",
    "Association",
    "Believed",
    "BuiltEnvironment",
    "Categorical",
    "CityConfig",
    "CounterFaults",
    "CountryRows",
    "Coverage",
    "Dates",
    "DomainPrior",
    "Habits",
    "LogUniform",
    "Mixture",
    "OperatorReporting",
    "RadioModel",
    "RayTracedRadio",
    "ReportingModel",
    "ServiceConfig",
    "SharedPresenceTraffic",
    "SimulatedCity",
    "StatisticalRadio",
    "TrafficModel",
    "TruncatedNormal",
    "Uniform",
    "simulate_both",
    "simulate_cities",
    "simulate_city",
    "surrogate_city",
    "write_official_files",
]
