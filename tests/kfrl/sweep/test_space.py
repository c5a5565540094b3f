from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.trials import DOMAIN
from kfrl.errors import UserError
from kfrl.supervised.trials import DOMAIN as IMAGES
from kfrl.sweep.space import Spec, Trial, draw, flat, load_spec, make_trials, nested, with_teachers


def trials(scale: float = 1.0, **given: Any) -> list[Trial]:
    return make_trials(Spec(**given), DOMAIN, scale)


def drawn(found: list[Trial]) -> dict[str, Any]:
    return {trial.name: trial.drawn["lr"] for trial in found}


LR = {"log_uniform": [1e-4, 1e-2]}


def test_games_methods_teachers_and_seeds_are_crossed() -> None:
    found = trials(
        settings={"game": {"grid": ["Alien", "Pong"]}, "seed": {"range": 3}, "workers": 2},
        arms={"scratch": {}, "flow": {"teachers": {"grid": ["zoo:seaquest", ["zoo:seaquest", "zoo:riverraid"]]}}},
    )
    assert len(found) == 2 * 3 * (1 + 2)
    assert found[0].name == "scratch-alien-s1"
    assert {trial.group for trial in found} == {"scratch", "flow-zoo_seaquest", "flow-zoo_seaquest+zoo_riverraid"}
    last = found[-1]
    assert last.settings == {
        **{"game": "Pong", "seed": 3, "workers": 2, "steps": 10_000_000},
        "teachers": "zoo:seaquest,zoo:riverraid",
    }
    assert last.cpu == 2


def test_every_seed_has_a_draw_of_its_own_that_no_other_run_changes() -> None:
    few = drawn(trials(settings={"game": "Alien", "lr": LR, "seed": {"range": 3}}))
    more = trials(
        settings={"game": {"grid": ["Pong", "Alien"]}, "gamma": {"uniform": [0.9, 1]}, "lr": LR, "seed": {"range": 5}}
    )
    assert len(set(few.values())) == 3
    assert all(1e-4 <= value <= 1e-2 for value in few.values())
    again = drawn(trials(settings={"game": "Alien", "lr": LR, "seed": {"range": 5}}))
    assert few.items() <= again.items()
    assert len({trial.drawn["lr"] for trial in more}) == 10
    assert drawn(trials(seed=2, settings={"game": "Alien", "lr": LR, "seed": {"range": 3}})) != few


def test_samples_are_crossed_with_seeds() -> None:
    found = trials(samples=4, settings={"game": "Alien", "lr": LR, "seed": {"range": 3}})
    by_draw: dict[str, set[float]] = {}
    for trial in found:
        by_draw.setdefault(trial.name.split("-")[0], set()).add(trial.drawn["lr"])
    assert sorted(by_draw) == ["d1", "d2", "d3", "d4"]
    assert all(len(values) == 1 for values in by_draw.values())
    assert len(set.union(*by_draw.values())) == 4


def test_distributions_are_what_they_are_called() -> None:
    def sample(value: dict[str, Any]) -> Any:
        return np.array([draw(value, 1, key, "x") for key in range(500)])

    assert set(sample({"integers": [2, 4]})) == {2, 3, 4}
    assert set(sample({"choice": [0.05, 0.1, 0.5]})) == {0.05, 0.1, 0.5}
    # The median of a log-uniform variable is the geometric mean of its ends, that of a uniform one their mean.
    assert np.median(sample({"log_uniform": [1e-4, 1e-2]})) == pytest.approx(1e-3, rel=0.2)
    assert np.median(sample({"uniform": [0.0, 2.0]})) == pytest.approx(1.0, abs=0.1)


def test_a_scale_shortens_budgets_and_seeds() -> None:
    found = trials(0.1, settings={"game": "Alien", "steps": 1000, "seed": {"range": 25}}, scaled={"preset": "fast"})
    assert [trial.settings["seed"] for trial in found] == [1, 2]
    assert found[0].settings["steps"] == 100
    assert found[0].settings["preset"] == "fast"


def test_own_teachers_come_first_and_are_named_by_their_students() -> None:
    found = trials(
        teachers={"big": {"game": "Pong"}, "next": {"game": "Alien", "teachers": "@big"}},
        settings={"game": "Alien", "teachers": "@next,zoo:pong"},
    )
    assert [(trial.name, trial.level) for trial in found] == [("teacher-big", 0), ("teacher-next", 1), ("s1", 2)]
    assert with_teachers(found[2].settings, {"next": "/there"})["teachers"] == "/there,zoo:pong"


def test_nested_and_dotted_settings_are_the_same() -> None:
    both = {"flow": {"fold_at": None, "dependence_coef": {"choice": [1]}}, "lr": 1}
    assert flat(both) == {"flow.fold_at": None, "flow.dependence_coef": {"choice": [1]}, "lr": 1}
    assert nested(flat(both)) == both


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"settings": {"game": {"grid": []}}}, r"game: \{grid: \[..\]\} expects at least one value, got \[\]"),
        ({"settings": {"game": "Alien", "seed": {"range": 0}}}, "n of at least 1, got 0"),
        ({"settings": {"game": "Alien", "lr": {"uniform": [2, 1]}}}, r"Swap them: \[1, 2\]"),
        ({"settings": {"game": "Alien", "lr": {"log_uniform": [0, 1]}}}, "expects two numbers above 0"),
        ({"settings": {"game": "Alien", "lr": {"uniform": [1]}}}, r"expects two numbers, got \[1\]"),
        ({"settings": {"game": "Alien", "lr": {"choice": []}}}, "at least one value"),
        ({"settings": {"game": {"grid": ["Alien", "alien"]}}}, "have the same folder, alien-s1"),
        ({"settings": {"game": "Alien"}, "arms": {"a": {}, "b": {}}}, "are the same, a-s1 and b-s1"),
        ({"settings": {"game": "Alein"}}, "Did you mean 'Alien'"),
        ({"settings": {"game": "Alien", "flow": {"fold_att": 1}}}, "Did you mean fold_at"),
        ({"settings": {"game": "Alien", "eval_episodes": 0}}, "eval_episodes of at least 1"),
        ({"settings": {"game": "Alien", "device": "cuda:1"}}, "device cuda:1: in a sweep Ray chooses the GPU"),
        ({"settings": {"game": "Alien"}, "samples": 3}, "nothing is drawn"),
        (
            {"settings": {"game": "Alien", "teachers": "@bg"}, "teachers": {"big": {"game": "Pong"}}},
            "Did you mean '@big'",
        ),
        ({"teachers": {"a": {"game": "Pong", "teachers": "@a"}}}, "need each other in a circle: a -> a"),
        ({"teachers": {"a": {"game": "Pong", "seed": {"range": 2}}}}, "is one run: give seed one value"),
        ({}, "have no game"),
    ],
)
def test_bad_input_is_named(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        trials(**given)


def test_a_file_has_no_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("sets: {game: Alien}\n")
    with pytest.raises(UserError, match=r"Unknown key sets\. Did you mean settings\?"):
        load_spec(path)


def test_settings_go_over_a_config_that_is_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: digits\nepochs: 7\nlr: 0.3\n")
    (tmp_path / "sweep.yaml").write_text("runs: images\nconfig: base.yaml\nsettings: {lr: {grid: [0.1, 0.2]}}\n")
    spec = load_spec(tmp_path / "sweep.yaml")
    found = make_trials(spec, IMAGES, beside=tmp_path)
    assert [trial.settings for trial in found] == [
        {"data": "digits", "epochs": 7, "lr": lr, "seed": 1} for lr in (0.1, 0.2)
    ]
    assert [trial.name for trial in found] == ["lr=0.1-s1", "lr=0.2-s1"]
