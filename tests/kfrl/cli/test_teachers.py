from pathlib import Path

import pytest
import torch

from kfrl.cli.main import main
from kfrl.nets.atari import AtariNet
from kfrl.stats import reference_scores
from kfrl.teachers.formats import load_agent
from kfrl.teachers.store import find_teacher


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def test_zoo_ships_a_seaquest_teacher_clearly_better_than_random(capsys: pytest.CaptureFixture[str]) -> None:
    card = find_teacher("seaquest", Path("runs")).card
    assert card.steps >= 2_000_000
    assert len(card.evaluation["scores"]) == 30
    assert card.evaluation["ci_low"] > 5 * reference_scores()["seaquest"].random
    assert card.protocol["name"] == "paper"
    assert len(card.commit) >= 40
    assert main(["teachers"]) == 0
    assert "zoo:seaquest" in capsys.readouterr().out


def test_show_prints_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "show", "zoo:seaquest"]) == 0
    said = capsys.readouterr().out
    card = find_teacher("zoo:seaquest", Path("runs")).card
    for word in ("game: seaquest", f"agent steps: {card.steps}", card.commit, "scores:", "Random play scores 68.4"):
        assert word in said


def test_import_keeps_the_net_and_refuses_another_game(capsys: pytest.CaptureFixture[str]) -> None:
    net = AtariNet(4, ((32, 8, 4), (64, 4, 2), (32, 3, 1)), 512)
    torch.save(net.state_dict(), "breakout.pth")
    assert main(["teachers", "import", "breakout.pth", "--game", "Breakout", "--output", "b.safetensors"]) == 0
    loaded = load_agent(Path("b.safetensors"))
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(loaded.net(obs)[0], net(obs)[0])
    assert loaded.card.actions == ("NOOP", "FIRE", "RIGHT", "LEFT")
    assert main(["teachers", "import", "breakout.pth", "--game", "Alien", "--output", "a.safetensors"]) == 2
    assert "4 actions, but alien has 18" in capsys.readouterr().err
    assert main(["teachers", "import", "breakout.pth", "--game", "Breakout", "--output", "b.safetensors"]) == 2
    assert not Path("a.safetensors").exists()


def test_unknown_teacher_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "show", "seaqest"]) == 2
    assert "Did you mean 'seaquest'" in capsys.readouterr().err
