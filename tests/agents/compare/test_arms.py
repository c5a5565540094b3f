import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.compare.arms import Arm, check_shared, describe_kinds, find_baseline, kinds_of, make_arms
from agents.compare.records import RunRecord, read_run
from agents.engines.settings import PPOConfig
from kfrl.errors import UserError

Build = Callable[..., Path]
Records = Callable[..., list[RunRecord]]


@pytest.fixture
def records(finished_run: Build, tmp_path: Path) -> Records:
    """records({...settings}, {...settings}): a run of each; `group` names its arm."""

    def build(*runs: dict[str, object]) -> list[RunRecord]:
        made = []
        for number, settings in enumerate(runs):
            group = settings.pop("group", None)
            made.append(read_run(finished_run(tmp_path / f"run{number}", **settings), group))
        return made

    return build


def names(arms: list[Arm]) -> dict[str, int]:
    return {arm.name: len(arm.all_runs) for arm in arms}


def test_seeds_games_and_bookkeeping_are_no_arms_of_their_own(records: Records) -> None:
    arms = make_arms(
        records(
            {"seed": 2},
            {"seed": 1},
            {"seed": 1, "game": "Pong"},
            {"seed": 3, "checkpoint_every": 5.0, "curve_points": 3},
        )
    )
    assert names(arms) == {"a3c": 4}
    assert [run.config.seed for run in arms[0].runs["breakout"]] == [1, 2, 3]
    assert [run.config.seed for run in arms[0].runs["pong"]] == [1]


def test_a_teacher_is_what_its_file_holds_and_not_where_it_lies(records: Records) -> None:
    one, other = "1" * 64, "2" * 64
    arms = make_arms(
        records(
            {"teachers": "zoo:seaquest", "teacher_sha256": (one,), "seed": 1},
            {"teachers": "/elsewhere/seaquest.safetensors", "teacher_sha256": (one,), "seed": 2},
            {"teachers": "zoo:seaquest", "teacher_sha256": (other,), "seed": 3},
        )
    )
    assert sorted(names(arms).values()) == [1, 2], "an overwritten teacher is another one"
    assert any("22222222" in arm.name for arm in arms)


def test_method_and_teachers_are_the_name_and_scratch_comes_first(records: Records) -> None:
    arms = make_arms(
        records(
            {"teachers": "zoo:seaquest,zoo:pong"},
            {"teachers": "zoo:seaquest", "method": "fine-tune"},
            {"teachers": "zoo:seaquest"},
            {},
        )
    )
    assert list(names(arms)) == [
        "a3c",
        "fine-tune (seaquest)",
        "knowledge-flow (seaquest)",
        "knowledge-flow (seaquest+pong)",
    ]


def test_source_games_are_part_of_the_name_spelt_as_teachers_are(records: Records) -> None:
    arms = make_arms(records({"method": "distral", "source_games": "Seaquest,MsPacman"}))
    assert list(names(arms)) == ["distral (seaquest+ms_pacman)"]


def test_namesakes_are_told_apart_by_as_few_settings_as_possible(records: Records) -> None:
    slow = {"fold_observations": 4096, "fold_at": 0.5}
    arms = make_arms(
        records(
            {},
            {"lr": 0.0001, "gamma": 0.9},
            {"teachers": "zoo:seaquest"},
            {"teachers": "zoo:seaquest", "methods": {"knowledge-flow": slow}},
            {"teachers": "zoo:seaquest", "t_max": 20, "methods": {"knowledge-flow": slow}},
        )
    )
    assert list(names(arms)) == [
        "a3c (lr=0.0001)",
        "a3c (lr=0.001)",
        "knowledge-flow (seaquest, t_max=20, knowledge-flow.fold_at=0.5)",
        "knowledge-flow (seaquest, t_max=5, knowledge-flow.fold_at=0)",
        "knowledge-flow (seaquest, t_max=5, knowledge-flow.fold_at=0.5)",
    ]


def test_two_teachers_of_one_name_are_two_arms(records: Records) -> None:
    arms = make_arms(records({"teachers": "zoo:seaquest"}, {"teachers": "seaquest"}))
    assert list(names(arms)) == [
        "knowledge-flow (seaquest, teachers=seaquest)",
        "knowledge-flow (seaquest, teachers=zoo:seaquest)",
    ]


def test_settings_of_knowledge_flow_do_not_part_runs_of_another_method(records: Records) -> None:
    assert names(make_arms(records({}, {"methods": {"knowledge-flow": {"fold_at": 0.5}}}))) == {"a3c": 2}


def test_a_methods_own_settings_part_its_runs(records: Records) -> None:
    tuned = {"teachers": "zoo:seaquest", "method": "fine-tune"}
    arms = make_arms(records(tuned, {**tuned, "methods": {"fine-tune": {"heads_only": True}}}))
    assert names(arms) == {
        "fine-tune (seaquest, fine-tune.heads_only=False)": 1,
        "fine-tune (seaquest, fine-tune.heads_only=True)": 1,
    }


def test_the_algorithm_is_part_of_the_name_where_it_is_not_a3c(records: Records) -> None:
    a2c = {"algo": "a2c", "max_grad_norm": None}
    arms = make_arms(records({"teachers": "zoo:seaquest", **a2c}, a2c, {**a2c, "ppo": PPOConfig(epochs=9)}))
    assert names(arms) == {"a2c": 2, "knowledge-flow-a2c (seaquest)": 1}
    assert find_baseline(arms, None)[0] is arms[0]


def test_a_default_written_out_is_the_same_setting(records: Records) -> None:
    spelt = {"workers": 16, "envs_per_worker": 1, "t_max": 5, "max_grad_norm": 40.0, "preset": "fast"}
    assert names(make_arms(records({"preset": "paper"}, spelt))) == {"a3c": 2}


def test_a_name_of_the_users_is_one_arm_whatever_its_runs_are(records: Records) -> None:
    arms = make_arms(records({"group": "mine"}, {"group": "mine", "teachers": "zoo:seaquest"}, {}))
    assert names(arms) == {"a3c": 1, "mine": 2}
    assert [arm.method for arm in arms] == ["a3c", "several"]


def test_runs_of_one_kind_are_accepted(records: Records) -> None:
    check_shared(records({}, {"game": "Pong"}, {"teachers": "zoo:seaquest", "seed": 3}))


@pytest.mark.parametrize(
    ("other", "scores", "words"),
    [
        ({"steps": 200}, (1.0, 2.0), ["steps 100: ", "steps 200: "]),
        ({"protocol": "sb3"}, (1.0, 2.0), ["fire_reset False: ", "fire_reset True: "]),
        ({"protocol": "machado", "game": "Pong"}, (1.0, 2.0), ["sticky 0, full_action_set False", "sticky 0.25"]),
        ({}, (1.0,), ["episodes 2: ", "episodes 1: "]),
        ({"greedy": True}, (1.0, 2.0), ["actions sampled: ", "actions most probable: "]),
    ],
)
def test_mixed_runs_are_refused_with_what_differs_and_where(
    records: Records, other: dict[str, object], scores: tuple[float, ...], words: list[str]
) -> None:
    mixed = records({}, {"scores": scores, **other})
    with pytest.raises(UserError) as refused:
        check_shared(mixed)
    said = str(refused.value).splitlines()
    assert words[0] in said[1]
    assert said[1].endswith("run0")
    assert words[1] in said[2]
    assert said[2].endswith("run1")


def test_every_run_that_differs_is_named_and_the_many_others_are_counted(records: Records) -> None:
    kinds = describe_kinds(kinds_of(records({}, {}, {}, {"steps": 7}, {"steps": 8}, {"steps": 7})), most=1)
    assert [re.findall(r"run\d", line) for line in kinds] == [["run0"], ["run3", "run5"], ["run4"]]
    assert kinds[0].endswith("run0 and 2 more")


def test_mixed_budgets_within_a_game_are_never_one_mean(records: Records) -> None:
    assert list(names(make_arms(records({}, {"steps": 200}, {"group": "mine"}, {"group": "mine", "steps": 200})))) == [
        "a3c (steps=100)",
        "a3c (steps=200)",
        "mine (steps=100)",
        "mine (steps=200)",
    ]


def test_budgets_that_only_games_differ_in_leave_an_arm_whole(records: Records) -> None:
    assert names(make_arms(records({}, {"steps": 200, "game": "Pong"}))) == {"a3c": 2}


def test_the_baseline_is_scratch_or_what_is_asked_for(records: Records) -> None:
    arms = make_arms(records({}, {"teachers": "zoo:seaquest"}, {"teachers": "zoo:seaquest", "method": "fine-tune"}))
    for wanted, name in {
        None: "a3c",
        "scratch": "a3c",
        "a3c": "a3c",
        "fine-tune": "fine-tune (seaquest)",
        "knowledge-flow (seaquest)": "knowledge-flow (seaquest)",
    }.items():
        found, _ = find_baseline(arms, wanted)
        assert found is not None
        assert found.name == name


def test_no_baseline_is_said_and_a_wrong_one_refused(records: Records) -> None:
    flows = make_arms(records({"teachers": "zoo:seaquest"}, {"teachers": "zoo:seaquest", "lr": 0.1}))
    assert find_baseline(flows, None) == (None, "no scratch runs")
    with pytest.raises(UserError, match=r"2 arms: .*lr=0.001"):
        find_baseline(flows, "knowledge-flow")
    with pytest.raises(UserError, match="Did you mean 'knowledge-flow'"):
        find_baseline(flows, "knowlege-flow")


def test_two_scratch_arms_are_no_baseline_by_themselves(records: Records) -> None:
    found, reason = find_baseline(make_arms(records({}, {"lr": 0.1})), None)
    assert found is None
    assert "2 arms are scratch" in reason
