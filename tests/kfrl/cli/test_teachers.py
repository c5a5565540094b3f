import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from agents.evaluation.play import Evaluation
from agents.teachers.formats import Card, load_agent, save_agent
from agents.teachers.store import ZOO, find_teacher
from envs import atari, protocols
from envs.preprocessing import PRESETS
from kfrl.cli.main import main
from kfrl.cli.teachers import net_name, verdict
from kfrl.compare.stats import reference_scores
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.atari.progressive import ProgressiveNet


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


SHIPPED = {
    "freeway": (1_000_000, 20.0),
    "pong": (8_000_000, 15.0),
    "riverraid": (10_000_000, 7_000.0),
    "seaquest": (10_000_000, 1_500.0),
}
"""Agent steps of each agent of the zoo, and a score that is clearly better than random play's."""


@pytest.mark.parametrize(("game", "steps", "clearly_better"), [(game, *least) for game, least in SHIPPED.items()])
def test_the_zoos_teachers_are_clearly_better_than_random(
    game: str, steps: int, clearly_better: float, capsys: pytest.CaptureFixture[str]
) -> None:
    card = find_teacher(game, Path("runs")).card
    assert card.steps >= steps
    assert len(card.curve) > 10
    assert len(card.evaluation["scores"]) == 30
    assert card.evaluation["ci_low"] > clearly_better > reference_scores()[game].random
    assert card.protocol["name"] == "paper"
    assert len(card.commit) >= 40
    assert main(["teachers"]) == 0
    assert f"zoo:{game}" in capsys.readouterr().out


def test_every_teacher_of_the_zoo_is_tested() -> None:
    assert {path.stem for path in ZOO.glob("*.safetensors")} == SHIPPED.keys()


def test_names_stay_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["teachers"]) == 0
    said = capsys.readouterr().out
    assert all(f"zoo:{game}" in said for game in SHIPPED)


def test_show_prints_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "show", "zoo:seaquest"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    card = find_teacher("zoo:seaquest", Path("runs")).card
    for word in ("game: seaquest", f"agent steps: {card.steps}", card.commit, "scores:", "Random play scores 68.4"):
        assert word in said


def test_the_table_shows_net_method_steps_and_scores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    card = find_teacher("zoo:seaquest", Path("runs")).card
    assert card.mean_score is not None
    normalised = (card.mean_score - 68.4) / (42054.7 - 68.4)
    assert main(["teachers"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "zoo:seaquest" in line]
    for cell in ("Seaquest", net_name(card.arch), card.method, f"{card.steps:,}", f"{card.mean_score:,.1f}"):
        assert cell in row
    assert f"{normalised:.1%}" in row


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (AtariNet(4), "16-32-256"),
        (AtariNet(4, ((32, 8, 4), (64, 4, 2), (32, 3, 1)), 512), "32-64-32-512"),
        (AtariNet(4, ((4, 8, 4),), 8, head="q"), "4-8 Q"),
        (ProgressiveNet(4, {"pong": AtariNet(6, ((4, 8, 4),), 8)}), "16-32-256 + 4-8"),
    ],
)
def test_a_net_is_named_by_its_sizes(net: AtariNet, name: str) -> None:
    assert net_name(net.arch) == name


# --- import -------------------------------------------------------------------------------------------------


@pytest.fixture
def breakout() -> AtariNet:
    net = AtariNet(4, ((32, 8, 4), (64, 4, 2), (32, 3, 1)), 512)
    torch.save(net.state_dict(), "breakout.pth")
    return net


def test_import_keeps_the_net_and_what_is_said_of_it(breakout: AtariNet, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--preprocessing baselines --score 391 --notes found".split()
    assert main(["teachers", "import", "breakout.pth", "--game", "Breakout", *flags]) == 0
    assert "Check it: kfrl teachers check breakout.safetensors" in capsys.readouterr().out
    loaded = load_agent(Path("breakout.safetensors"))
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(loaded.net(obs)[0], breakout(obs)[0])
    card = loaded.card
    assert (card.game, card.actions) == ("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"))
    assert (card.preprocessing, card.mean_score, card.notes) == (PRESETS["baselines"], 391.0, "found")
    assert main(["teachers", "show", "breakout.safetensors"]) == 0
    assert "fire_reset: true" in capsys.readouterr().out


def test_the_game_may_stand_in_the_reference(breakout: AtariNet) -> None:
    assert main(["teachers", "import", "plain:breakout.pth@Breakout", "--output", "b.safetensors"]) == 0
    assert load_agent(Path("b.safetensors")).card.preprocessing == PRESETS["ale"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["breakout.pth", "--game", "Alien"], ["4 actions, but Alien has 18"]),
        (["breakout.pth"], ["does not name the game", "breakout.pth@GAME"]),
        (["breakout.pth@Brekout"], ["'Brekout'", "'Breakout'"]),
        (["braekout.pth@Breakout"], ["There is no file", "'breakout.pth'"]),
        (["breakout.pth@Breakout", "--format", "cleanlr"], ["'cleanlr'", "'cleanrl'"]),
        (["breakout.pth@Breakout", "--format", "sb3"], ["not of format sb3"]),
        (["breakout.pth@Breakout", "--preprocessing", "baseline"], ["'baseline'", "'baselines'"]),
        (["breakout.pth@Breakout", "--output", "b.pth"], [".safetensors", "'b.pth'"]),
        (["breakout.pth@Breakout", "--output", "there.safetensors"], ["there.safetensors exists"]),
        (["ours.safetensors", "--output", "b.safetensors"], ["already an agent file of kfrl"]),
        (["text.zip@Pong"], ["without a policy", "readme"]),
        (["notes.pth@Pong"], ["not a plain state dict", "no code in it ran"]),
        (["hub:owner/file@Pong"], ["owner/repo/file", "hub:owner/file"]),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_sentence_and_nothing_is_written(
    breakout: AtariNet, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    Path("there.safetensors").touch()
    save_agent(Path("ours.safetensors"), breakout, Card("breakout", ("NOOP", "FIRE", "RIGHT", "LEFT"), breakout.arch))
    with zipfile.ZipFile("text.zip", "w") as archive:
        archive.writestr("readme", "nothing here")
    Path("notes.pth").write_text("these are no weights")
    before = sorted(path.name for path in Path().iterdir())
    assert main(["teachers", "import", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("kfrl: ")
    assert "Traceback" not in said
    assert [word for word in words if word not in said] == [], said
    assert sorted(path.name for path in Path().iterdir()) == before


# --- pack ---------------------------------------------------------------------------------------------------


def test_a_packed_run_is_half_as_large_and_plays_by_what_it_holds(
    finished_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(Path("run"), game="Pong", curve={50: (1.0, -20.0), 100: (3.0, -18.5)})
    own = load_agent(run / "student.safetensors").net
    assert main(["teachers", "pack", "run", "--episodes", "2", "--notes", "short"]) == 0
    assert "Wrote pong.safetensors" in capsys.readouterr().out
    packed = load_agent(Path("pong.safetensors"))
    assert packed.card.curve == ((50, -20.0), (100, -18.5))
    assert packed.card.notes == "short"
    assert len(packed.card.evaluation["scores"]) == 2
    for name, tensor in own.state_dict().items():
        assert packed.net.state_dict()[name].dtype == torch.float32
        assert torch.equal(packed.net.state_dict()[name], tensor.half().float())
    with safe_open("pong.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.half}
    assert main(["teachers", "show", "pong.safetensors"]) == 0
    assert "- [100, -18.5]" in capsys.readouterr().out
    assert main(["teachers", "pack", "run"]) == 2
    assert "pong.safetensors exists" in capsys.readouterr().err


def test_an_unfinished_run_is_not_packed(finished_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    (finished_run(Path("run")) / "eval.json").unlink()
    assert main(["teachers", "pack", "run"]) == 2
    assert "kfrl train --resume run" in capsys.readouterr().err
    assert not Path("breakout.safetensors").exists()


# --- check --------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Games of 25 steps."""
    whole = protocols.get_protocol

    def cut(name: str, game: str) -> protocols.Protocol:
        return replace(whole(name, game), max_frames=100)

    monkeypatch.setattr(protocols, "get_protocol", cut)
    monkeypatch.setattr(atari, "get_protocol", cut)


def test_check_plays_an_agent_on_its_own_pictures_and_on_ales(
    breakout: AtariNet, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--preprocessing async-rl --score 400".split()
    assert main(["teachers", "import", "breakout.pth@Breakout", *flags]) == 0
    assert main(["teachers", "check", "breakout.safetensors", "--episodes", "3", "--json", "scores.json"]) == 0
    said = capsys.readouterr().out
    results = json.loads(Path("scores.json").read_text())
    own, ale = results["on its own pictures"], results["on ale-py's pictures, as a student's teacher sees them"]
    assert own["preprocessing"]["luma"] == [0.2126, 0.0722, 0.7152]
    assert ale["preprocessing"]["luma"] is None
    assert own["seed"] == ale["seed"] == 1
    # Nobody scores in 25 steps, so there is no interval to hold the claim against.
    assert set(own["scores"]) == {0.0}
    assert own["ci_low"] is None
    assert "claims 400.0; games with equal scores have no interval to compare it with" in " ".join(said.split())


def test_one_game_is_held_against_no_card(capsys: pytest.CaptureFixture[str], short: None) -> None:
    assert main(["teachers", "check", "zoo:seaquest", "--episodes", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Its card claims 1,657.3; one game has no interval to compare it with" in said


def test_check_plays_an_agent_of_ours_once(breakout: AtariNet, short: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "check", "breakout.pth@Breakout", "--episodes", "2", "--json", "scores.json"]) == 0
    assert list(json.loads(Path("scores.json").read_text())) == [
        "on ale-py's pictures, as a student's teacher sees them"
    ]
    assert "claims no score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("claim", "scores", "words"),
    [
        (2.0, (1.0, 2.0, 3.0), "claims 2.0: within the interval, 1.0 to 3.0"),
        (3.5, (1.0, 2.0, 3.0), "claims 3.5: outside the interval"),
        (3.5, (1.0,), "one game has no interval"),
        (None, (1.0, 2.0), "claims no score"),
    ],
)
def test_a_claim_is_held_against_the_interval(claim: float | None, scores: tuple[float, ...], words: str) -> None:
    card = Card("pong", (), {}, evaluation={} if claim is None else {"mean": claim})
    games = tuple(atari.Episode(k, score, 10, False) for k, score in enumerate(scores))
    result = Evaluation(protocols.get_protocol("paper", "Pong"), False, 0, len(games), games)
    assert words in verdict(card, result)


@pytest.mark.parametrize(
    ("scores", "claimed", "words"),
    [
        # Of the 252 ways to part ten games in two fives, 2 are as far apart as these.
        (
            (1.0, 2.0, 3.0, 4.0, 5.0),
            (11.0, 12.0, 13.0, 14.0, 15.0),
            "-10.0, more than chance (permutation test, p = 0.008 ",
        ),
        # Of the 6 ways to part four in two twos, 2 and 4.
        ((1.0, 3.0), (11.0, 13.0), "-10.0, within chance (permutation test, p = 0.333 against 0.01)"),
        ((1.0, 3.0), (2.0, 4.0), "-1.0, within chance (permutation test, p = 0.667 "),
    ],
)
def test_a_claim_of_single_games_is_held_against_them(
    scores: tuple[float, ...], claimed: tuple[float, ...], words: str
) -> None:
    card = Card("pong", (), {}, evaluation={"mean": sum(claimed) / len(claimed), "scores": list(claimed)})
    games = tuple(atari.Episode(k, score, 10, False) for k, score in enumerate(scores))
    result = Evaluation(protocols.get_protocol("paper", "Pong"), False, 0, len(games), games)
    assert words in verdict(card, result)


@pytest.mark.parametrize("evaluation", [{"mean": "high"}, {"mean": None, "scores": 3}, {"scores": "12"}])
def test_a_strangers_card_may_claim_nonsense(evaluation: dict[str, object]) -> None:
    card = Card("pong", (), {}, evaluation=evaluation)
    games = tuple(atari.Episode(k, score, 10, False) for k, score in enumerate((1.0, 3.0)))
    result = Evaluation(protocols.get_protocol("paper", "Pong"), False, 0, len(games), games)
    assert verdict(card, result) == "Its card claims no score."


def test_unknown_teacher_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "show", "seaqest"]) == 2
    assert "Did you mean 'seaquest'" in capsys.readouterr().err
