"""Simulated cities: radio coverage, traffic, and what an operator would publish of it."""

from __future__ import annotations

from simmst.simulation.association import Association
from simmst.simulation.built_environment import BuiltEnvironment
from simmst.simulation.city import simulate_cities, simulate_city, surrogate_city
from simmst.simulation.config import CityConfig
from simmst.simulation.distributions import Categorical, Dates, LogUniform, TruncatedNormal, Uniform
from simmst.simulation.official_files import CountryRows, write_official_files
from simmst.simulation.prior import DomainPrior
from simmst.simulation.radio import Coverage, RadioModel, StatisticalRadio
from simmst.simulation.ray_tracing import RayTracedRadio
from simmst.simulation.realism import RealismReport, compare, compare_files
from simmst.simulation.reporting import OperatorReporting, ReportingModel
from simmst.simulation.services import DEFAULT_SERVICES, ServiceConfig
from simmst.simulation.traffic import SharedPresenceTraffic, TrafficModel

__all__ = [
    "DEFAULT_SERVICES",
    "Association",
    "BuiltEnvironment",
    "Categorical",
    "CityConfig",
    "CountryRows",
    "Coverage",
    "Dates",
    "DomainPrior",
    "LogUniform",
    "OperatorReporting",
    "RadioModel",
    "RayTracedRadio",
    "RealismReport",
    "ReportingModel",
    "ServiceConfig",
    "SharedPresenceTraffic",
    "StatisticalRadio",
    "TrafficModel",
    "TruncatedNormal",
    "Uniform",
    "compare",
    "compare_files",
    "simulate_cities",
    "simulate_city",
    "surrogate_city",
    "write_official_files",
]
