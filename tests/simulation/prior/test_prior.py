from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from simmst.errors import ConfigError
from simmst.simulation import (
    Believed,
    Categorical,
    CityConfig,
    Dates,
    DomainPrior,
    LogUniform,
    Mixture,
    TruncatedNormal,
    Uniform,
)
from simmst.simulation.prior.distributions import level, sometimes
from simmst.simulation.prior.plain import from_plain, to_plain

LAWS = [
    Uniform(-1.0, 3.0),
    LogUniform(0.01, 10.0),
    TruncatedNormal(1.0, 2.0, -1.0, 2.0),
    Categorical(("a", "b", "c"), (0.5, 0.25, 0.25)),
    Dates("2013-11-01", "2013-11-10"),
    Mixture((Uniform(0.0, 1.0), LogUniform(1.0, 10.0)), (0.75, 0.25)),
    sometimes(0.25, Uniform(1.0, 3.0)),
    Believed(Uniform(0.0, 1.0), (0.2, 0.7), (0.1, 0.9)),
]


@pytest.mark.parametrize("law", [*LAWS[:3], LAWS[5]], ids=lambda law: type(law).__name__)
def test_densities_integrate_to_one_and_match_the_draws(law):
    low, high = law.bounds
    grid = np.linspace(low, high, 20001)
    density = np.exp([law.log_prob(float(x)) for x in grid])
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    assert cumulative[-1] == pytest.approx(1.0, abs=2e-3)
    rng = np.random.default_rng(0)
    draws = np.sort([law.sample(rng) for _ in range(3000)])
    assert low <= draws[0] <= draws[-1] <= high
    empirical = np.arange(1, 3001) / 3000
    assert np.abs(np.interp(draws, grid, cumulative) - empirical).max() < 0.035  # Kolmogorov-Smirnov, p about 0.001
    assert law.log_prob(low - 1e-9) == law.log_prob(high + 1e-9) == -math.inf


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_laws_survive_plain_values(law):
    assert from_plain("x", to_plain(law)) == law


def test_a_share_of_the_cities_draws_from_the_law():
    law, rng = sometimes(0.25, Uniform(1.0, 3.0)), np.random.default_rng(0)
    drawn = np.array([law.sample(rng) for _ in range(2000)])
    assert np.mean(drawn == 0) == pytest.approx(0.75, abs=0.03)
    assert law.log_prob(0.0) == pytest.approx(math.log(0.75))
    assert law.log_prob(0.5) == -math.inf
    assert law.bounds == (0.0, 3.0)


def test_a_mixture_is_cut_to_an_interval_in_proportion():
    law = Mixture((Uniform(0.0, 1.0), Uniform(1.0, 3.0), Uniform(5.0, 6.0)), (0.5, 0.25, 0.25))
    cut = law.within(0.5, 2.0)
    assert cut == Mixture((Uniform(0.5, 1.0), Uniform(1.0, 2.0)), (2 / 3, 1 / 3))
    assert level(cut, 1.0) == pytest.approx(2 / 3)
    assert law.within(8.0, 9.0).bounds == (8.0, 9.0), "the first law moves to an interval that no law overlaps"
    narrowed = DomainPrior.default().narrow({"noise_log_std": (0.1, 0.2)})
    assert narrowed.bounds()["noise_log_std"] == (0.1, 0.2)
    with pytest.raises(ConfigError, match="no interval to narrow to"):
        DomainPrior({"faults.dip_hour": Mixture((Categorical((1.0,)), Categorical((2.0,))), (0.5, 0.5))}).narrow(
            {"faults.dip_hour": (1.0, 2.0)}
        )


def test_habits_and_faults_are_parameters_like_others():
    prior = DomainPrior.default()
    config = prior.sample(3, 4)
    assert prior.values(config)["habits.day_shape"] == config.habits.day_shape
    assert prior.values(config)["faults.dip_level"] == config.faults.dip_level
    fixed = prior.sample(3, 4, faults={"dip_share": 1.0})
    assert (fixed.faults.dip_share, fixed.faults.zero_share) == (1.0, 0.0)
    assert fixed.habits == config.habits
    constant = prior.narrow({"habits.day_shape": "early", "faults.zero_share": 0.1}).sample(3, 4)
    assert (constant.habits.day_shape, constant.faults.zero_share) == ("early", 0.1)
    for name in ("faults.dips", "habits.day_shape", "faults.dip_share"):
        with pytest.raises(ConfigError, match=name):
            DomainPrior({name: Categorical((7.0,))})


def test_usual_cities_have_usual_habits_and_no_faults():
    config = DomainPrior.usual().sample(1, 2)
    assert config.habits == CityConfig().habits
    assert not config.faults.any


def test_categories_and_dates():
    rng = np.random.default_rng(0)
    drawn = [LAWS[3].sample(rng) for _ in range(2000)]
    assert drawn.count("a") / 2000 == pytest.approx(0.5, abs=0.05)
    assert LAWS[3].log_prob("b") == math.log(0.25)
    assert LAWS[3].log_prob("d") == -math.inf
    dates = {LAWS[4].sample(rng) for _ in range(300)}
    assert (min(dates), max(dates), len(dates)) == ("2013-11-01", "2013-11-10", 10)
    assert LAWS[4].log_prob("2013-11-11") == -math.inf


@pytest.mark.parametrize(
    "build",
    [
        lambda: Uniform(1.0, 1.0),
        lambda: LogUniform(0.0, 1.0),
        lambda: TruncatedNormal(0.0, 0.0, -1.0, 1.0),
        lambda: TruncatedNormal(0.0, 1.0, 50.0, 60.0),
        lambda: Categorical(()),
        lambda: Categorical(("a", "b"), (0.5, 0.6)),
        lambda: Dates("2013-11-02", "2013-11-01"),
    ],
)
def test_impossible_laws_are_refused(build):
    with pytest.raises(ConfigError):
        build()


def test_draws_depend_on_seed_and_index_alone():
    prior = DomainPrior.default()
    forwards = [prior.sample(4, index) for index in range(6)]
    backwards = [prior.sample(4, index) for index in reversed(range(6))][::-1]
    assert forwards == backwards
    assert len({config.carrier_ghz for config in forwards}) == 6
    assert prior.sample(5, 0).carrier_ghz != forwards[0].carrier_ghz


def test_changing_one_law_or_fixing_one_field_changes_no_other_draw():
    prior = DomainPrior.default()
    plain = prior.values(prior.sample(1, 2))
    narrowed = prior.narrow({"tilt_deg": (3.0, 3.5), "call.rate_per_user_hour": 0.2})
    changed = narrowed.values(narrowed.sample(1, 2, carrier_ghz=2.0))
    assert {name for name in plain if plain[name] != changed[name]} == {
        "tilt_deg",
        "call.rate_per_user_hour",
        "carrier_ghz",
    }
    assert 3.0 <= changed["tilt_deg"] <= 3.5
    assert type(narrowed.parameters["tilt_deg"]) is Uniform


def test_log_prob_is_finite_for_own_draws_and_minus_infinity_elsewhere():
    default, surrogate = DomainPrior.default(), DomainPrior.surrogate()
    for index in range(10):
        assert math.isfinite(default.log_prob(default.sample(1, index)))
        assert math.isfinite(surrogate.log_prob(surrogate.sample(1, index)))
        assert default.log_prob(surrogate.sample(1, index)) == -math.inf
    two = DomainPrior({"tilt_deg": Uniform(2.0, 12.0), "scenario": Categorical(("UMa", "UMi"))})
    assert two.log_prob(CityConfig()) == pytest.approx(-math.log(10) - math.log(2))


def test_surrogate_parameters_lie_outside_the_default_bounds():
    default, surrogate = DomainPrior.default().bounds(), DomainPrior.surrogate().bounds()
    outside = {
        name
        for name, (low, *_, high) in surrogate.items()
        if isinstance(low, float) and (low > default[name][-1] or high < default[name][0])
    }
    assert outside >= {
        "inter_site_distance_m",
        "density_log_std",
        "phase_h",
        "weekend_factor",
        "call.rate_per_user_hour",
        "sms.rate_per_user_hour",
        "internet.rate_per_user_hour",
    }


def test_services_the_city_lacks_are_left_out():
    prior = DomainPrior.default()
    config = prior.sample(1, 0, services=["internet"])
    assert config.service_names == ("internet",)
    assert config.services[0] == prior.sample(1, 0).services[2]
    assert "call.rate_per_user_hour" not in prior.values(config)
    assert math.isfinite(prior.log_prob(config))


def test_wrong_overrides_are_named():
    with pytest.raises(ConfigError, match="no field 'dais'; did you mean 'days'"):
        DomainPrior.default().sample(1, 0, dais=3)
    with pytest.raises(ConfigError, match=r"CityConfig\.seed is -1"):
        DomainPrior.default().sample(-1, 0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"carier_ghz": Uniform(1.0, 2.0)}, "unknown parameter 'carier_ghz'; did you mean 'carrier_ghz'"),
        ({"call.colour": Uniform(1.0, 2.0)}, "unknown parameter 'call.colour'"),
        ({"carrier_ghz": Uniform(0.1, 2.0)}, "parameter 'carrier_ghz'"),
        ({"call.rate_per_user_hour": Uniform(-1.0, 2.0)}, "parameter 'call.rate_per_user_hour'"),
        ({"scenario": Categorical(("UMa", "InF"))}, "parameter 'scenario'.*'InF'"),
        ({"carrier_ghz": 2.0}, "parameter 'carrier_ghz' is 2.0; give it a distribution"),
    ],
)
def test_unknown_and_impossible_parameters_are_named(parameters, message):
    with pytest.raises(ConfigError, match=message):
        DomainPrior(parameters)


def test_narrowing_needs_an_interval():
    with pytest.raises(ConfigError, match="'scenario' has no interval"):
        DomainPrior.default().narrow({"scenario": (1.0, 2.0)})


@pytest.mark.parametrize("prior", [DomainPrior.default(), DomainPrior.surrogate()], ids=["default", "surrogate"])
def test_yaml_round_trip(tmp_path, prior):
    pytest.importorskip("yaml")
    path = prior.to_yaml(tmp_path / "prior.yaml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["prior.yaml"]
    again = DomainPrior.from_yaml(path)
    assert again == prior
    assert again.sample(2, 3) == prior.sample(2, 3)


def test_yaml_keeps_the_base_for_parameters_not_named(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "prior.yaml"
    path.write_text("parameters:\n  tilt_deg: {distribution: uniform, low: 3, high: 4}\n  scenario: UMi\n")
    prior = DomainPrior.from_yaml(path)
    assert prior.bounds()["tilt_deg"] == (3, 4)
    assert prior.bounds()["scenario"] == ("UMi",)
    assert prior.bounds()["carrier_ghz"] == DomainPrior.default().bounds()["carrier_ghz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {tlt_deg: 3}", "unknown parameter 'tlt_deg'; did you mean 'tilt_deg'"),
        ("parameters: {tilt_deg: 300}", "parameter 'tilt_deg'.*300.*between 0 and 20"),
        ("parameters: {tilt_deg: {distribution: uniform, low: 5}}", "'tilt_deg': uniform needs the fields low, high"),
        ("parameters: {tilt_deg: {distribution: uniform, low: 5, hi: 6}}", "uniform has no field 'hi'"),
        ("parameters: {tilt_deg: {distribution: gauss}}", "distribution 'gauss' is unknown"),
        ("parameters: {tilt_deg: {distribution: uniform, low: 6, high: 5}}", "'tilt_deg'.*low must be a number below"),
        ("parameters: {tilt_deg: [1, 2]}", "parameter 'tilt_deg' is"),
        ("base: wide\nparameters: {}", "base is 'wide'"),
        ("params: {}", "needs a mapping 'parameters'"),
        ("extra: 1\nparameters: {}", "unknown key 'extra'"),
        ("note: 3\nparameters: {}", "note is 3; it must be text"),
        ("a: [", "cannot be read as a prior"),
    ],
)
def test_bad_yaml_names_file_and_parameter(tmp_path, text, message):
    pytest.importorskip("yaml")
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)bad\.yaml.*" + message):
        DomainPrior.from_yaml(path)


def test_missing_yaml_file_is_named(tmp_path):
    pytest.importorskip("yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        DomainPrior.from_yaml(tmp_path / "none.yaml")


def test_the_reference_lists_every_parameter_with_its_bounds():
    guide = Path(__file__).parents[3] / "docs" / "reference" / "prior.md"
    rows = {line.split("|")[1].strip(): line for line in guide.read_text(encoding="utf-8").splitlines() if "|" in line}
    for name, law in DomainPrior.default().parameters.items():
        row = rows[f"`{name}`"]
        expected = law.bounds if not isinstance(law.bounds[0], float) else [f"{end:g}" for end in law.bounds]
        assert all(str(end) in row.split("|")[2] for end in expected), row


def test_what_was_believed_narrows_the_prior_and_nothing_else():
    """The heavily weighted cities have a tilt of about nine degrees and one scenario."""
    prior = DomainPrior(
        {
            "tilt_deg": Uniform(2.0, 12.0),
            "users_per_cell": LogUniform(10.0, 1000.0),
            "noise_log_std": sometimes(0.5, Uniform(0.1, 0.5)),
            "scenario": Categorical(("UMa", "UMi", "RMa")),
        }
    )
    cities = [prior.values(prior.sample(0, index)) for index in range(120)]
    weights = [0.95 if abs(c["tilt_deg"] - 9.0) < 1.5 and c["scenario"] == "UMi" else 0.05 for c in cities]
    after = prior.believed(cities, weights)
    drawn = [after.values(after.sample(1, index)) for index in range(200)]
    tilt, users = (np.array([c[name] for c in drawn]) for name in ("tilt_deg", "users_per_cell"))
    assert abs(np.mean(tilt) - 9.0) < 1.0, "the prior's mean is 7"
    assert np.std(tilt) < 0.8 * 10 / math.sqrt(12)
    assert (tilt.min() >= 2.0, tilt.max() <= 12.0) == (True, True)
    assert np.mean([c["scenario"] == "UMi" for c in drawn]) > 0.6
    assert abs(np.mean(np.log10(users)) - 2.0) < 0.2, "the weights do not depend on the users"
    assert after.bounds() == prior.bounds()
    again = after.believed(drawn, [float(abs(c["tilt_deg"] - 9.0) < 0.5) for c in drawn])
    assert np.std([again.sample(2, index).tilt_deg for index in range(40)]) < 0.7 * np.std(tilt)


def test_equal_beliefs_leave_a_law_as_it_is():
    law = Believed(Uniform(2.0, 12.0), (3.0, 5.0, 11.0), (0.5, 0.5, 0.5))
    assert law.belief(4.0) == pytest.approx(0.5)
    assert law.log_prob(4.0) == pytest.approx(-math.log(10))
    assert law.log_prob(1.0) == -math.inf
    rng = np.random.default_rng(0)
    assert np.mean([law.sample(rng) for _ in range(500)]) == pytest.approx(7.0, abs=0.5)


def test_a_believed_density_integrates_to_one_and_matches_the_draws():
    grid, rng = np.linspace(0.0, 1.0, 401), np.random.default_rng(0)
    density = np.exp([LAWS[7].log_prob(float(x)) for x in grid])
    assert density.mean() == pytest.approx(1.0, abs=0.02)
    drawn = np.array([LAWS[7].sample(rng) for _ in range(1000)])
    assert np.mean(drawn < 0.5) == pytest.approx(density[:200].mean() / 2, abs=0.05)
    assert np.mean(drawn < 0.5) < 0.45


@pytest.mark.parametrize(("values", "weights"), [((1.0,), (0.5, 0.5)), ((1.0,), (-1.0,)), ((1.0,), (0.0,)), ((), ())])
def test_beliefs_that_say_nothing_are_refused(values, weights):
    with pytest.raises(ConfigError, match="weight of at least 0"):
        Believed(Uniform(0.0, 2.0), values, weights)
    with pytest.raises(ConfigError, match=r"2 cities have 1 weights"):
        DomainPrior.default().believed([{}, {}], [1.0])
