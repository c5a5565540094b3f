"""`kfrl collect` and `kfrl supervised collect`, from the command to a student."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.answers import Answers
from kfrl.cli.main import main
from kfrl.supervised.data.batches import Batch, Loader


def test_answers_are_collected_and_learned_from(
    tmp_path: Path, noise_games: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main("collect --teachers zoo:pong,seaquest --observations 6 --output a --seed 2".split()) == 0
    said = capsys.readouterr().out
    assert "6 observations of Pong, played by pong, and the answers of pong, seaquest" in said
    assert Answers.open(Path("a")).card.teachers[1].reference == "zoo:seaquest"
    assert main("collect --teachers pong --game Alien --observations 4 --features none --output b".split()) == 0
    assert "played by random actions" in capsys.readouterr().out
    assert main("collect --teachers pong --observations 4 --output a".split()) == 2
    assert "a exists. Give another --output" in capsys.readouterr().err
    assert main("collect --teachers pong --observations 4 --actor riverraid --output c".split()) == 2
    assert "Expected random, or one of pong" in capsys.readouterr().err
    assert main("collect --teachers pong --observations 4 --output p".split()) == 0
    small = "--convs 4 8 8 --hidden 8 --algo a2c --steps 80 --curve-points 0 --eval-episodes 0"
    assert main(["train", "--game", "Pong", "--answers", "p", *small.split(), "--run-dir", "run"]) == 0
    assert (
        "While the student imitates, no game is played and no teacher is run"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def test_answers_for_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = "--data digits --net mlp-4 --epochs 1 --train-images 200 --batch-size 60 --augment none"
    assert main(["supervised", "train", *first.split(), "--run-dir", "first"]) == 0
    collect = "supervised collect --data digits --teachers first --output d.answers"
    sizes, plain = [], Loader.ordered

    def noting(loader: Loader) -> Iterator[Batch]:
        for batch in plain(loader):
            sizes.append(len(batch.labels))
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "ordered", noting)
        assert main(collect.split()) == 0
    assert (max(sizes), sum(sizes)) == (60, 1438), "the batch of the teacher's run, whose net fits into memory with it"
    assert "the logits of digits on the 1,438 training images of digits" in capsys.readouterr().out
    assert main(collect.split()) == 2
    assert main(["supervised", "train", *first.split(), "--answers", "d.answers", "--run-dir", "second"]) == 0
    assert "kd" in capsys.readouterr().out
