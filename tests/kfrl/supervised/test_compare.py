import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kfrl.cli.supervised.compare import main
from kfrl.config import dump_config
from kfrl.errors import UserError
from kfrl.nets.images.registry import make_net
from kfrl.runs.folder import collect
from kfrl.supervised.classifiers import Card, save_classifier
from kfrl.supervised.compare import compare, read_run
from kfrl.supervised.config import SupervisedConfig

Build = Callable[..., Path]


@pytest.fixture
def finished(tmp_path: Path) -> Build:
    """Writes the folder of a run that nobody trained, with a given test error."""

    def build(error: float, seed: int, teachers: tuple[str, ...] = (), **settings: object) -> Path:
        method = "knowledge-flow" if teachers else "baseline"
        path = tmp_path / "runs" / f"{method}-{len(list(tmp_path.glob('runs/*')))}"
        path.mkdir(parents=True)
        config = SupervisedConfig(
            data="digits", method=method, net="mlp-3", seed=seed, teachers=",".join(teachers), run_dir=path
        )
        config = replace(config, **settings)
        net = make_net("mlp-3", (1, 8, 8), 10)
        digits = tuple("0123456789")
        card = Card(
            Path(config.data).name, digits, net.arch, (1, 8, 8), (0.3,), (0.4,), teachers=teachers, seed=seed, epochs=2
        )
        save_classifier(path / "student.safetensors", net, card)
        (path / "config.yaml").write_text(dump_config(config))
        (path / "metrics.csv").write_text("global_step\n1\n")
        result = {
            "test": {"error_percent": error, "images": 359},
            "trained_parameters": 300,
            "deployed_parameters": 235,
        }
        (path / "eval.json").write_text(json.dumps(result))
        return path

    return build


def test_arms_have_mean_and_spread_over_seeds(finished: Build, tmp_path: Path) -> None:
    for seed, error in enumerate((3.0, 5.0, 4.0), start=1):
        finished(error, seed)
        finished(error / 2, seed, teachers=("mnist",))
    records, skipped = collect([str(tmp_path / "runs")], read_run)
    found = compare(records, skipped)
    assert [(arm.name, arm.errors) for arm in found.arms] == [
        ("baseline", [3.0, 5.0, 4.0]),
        ("knowledge-flow (mnist)", [1.5, 2.5, 2.0]),
    ]
    assert (found.arms[0].mean, found.arms[0].std) == (4.0, 1.0)
    assert not [note for note in found.notes if "fewer than" in note]


def test_runs_of_other_settings_are_other_arms_named_by_them(finished: Build, tmp_path: Path) -> None:
    finished(3.0, 1, teachers=("mnist",))
    finished(3.0, 1, teachers=("mnist",), methods={"knowledge-flow": {"soft_targets": True}})
    finished(2.0, 1, epochs=99)
    found = compare(*collect([str(tmp_path / "runs")], read_run))
    assert [arm.name for arm in found.arms] == [
        "baseline",
        "knowledge-flow (mnist, knowledge-flow.soft_targets=False)",
        "knowledge-flow (mnist, knowledge-flow.soft_targets=True)",
    ]
    assert any("arms differ in epochs: baseline 99" in note for note in found.notes)
    assert any("fewer than 3 seeds" in note for note in found.notes)


def test_another_teacher_of_the_same_name_is_another_arm(finished: Build, tmp_path: Path) -> None:
    good, bad = "a" * 64, "b" * 64
    for seed, (error, checksum) in enumerate(((5.0, good), (6.0, good), (50.0, bad)), start=1):
        finished(error, seed, teachers=("mnist",), teacher_sha256=(checksum,))
    found = compare(*collect([str(tmp_path / "runs")], read_run))
    assert [(arm.name, arm.errors) for arm in found.arms] == [
        ("knowledge-flow (mnist, teacher.file=aaaaaaaa)", [5.0, 6.0]),
        ("knowledge-flow (mnist, teacher.file=bbbbbbbb)", [50.0]),
    ]
    one = compare(*collect([f"all={tmp_path / 'runs'}"], read_run))
    assert [arm.errors for arm in one.arms] == [[5.0, 6.0, 50.0]]
    assert any("runs of all differ in teacher.file" in note for note in one.notes)


def test_another_teacher_in_a_sweep_is_another_arm(finished: Build) -> None:
    good, bad = "a" * 64, "b" * 64
    paths = [
        finished(error, seed, teachers=("mnist",), teacher_sha256=(checksum,), lr=0.1 * seed)
        for seed, (error, checksum) in enumerate(((5.0, good), (6.0, good), (50.0, bad)), start=1)
    ]
    found = compare([replace(read_run(path), sweep="taught") for path in paths])
    assert [(arm.name, arm.errors) for arm in found.arms] == [
        ("taught (teacher.file=aaaaaaaa)", [5.0, 6.0]),
        ("taught (teacher.file=bbbbbbbb)", [50.0]),
    ]


def test_other_images_in_a_folder_of_the_same_name_are_another_arm(finished: Build, tmp_path: Path) -> None:
    for error, folder in ((5.0, "/a/digits"), (7.0, "/b/digits"), (6.0, "/a/digits")):
        finished(error, int(error), data=folder)
    found = compare(*collect([str(tmp_path / "runs")], read_run))
    assert [(arm.name, arm.errors) for arm in found.arms] == [
        ("baseline (data.folder=/a/digits)", [5.0, 6.0]),
        ("baseline (data.folder=/b/digits)", [7.0]),
    ]


def test_folders_of_one_name_in_a_sweep_are_two_arms(finished: Build) -> None:
    paths = [finished(error, 1, data=folder) for error, folder in ((5.0, "/a/digits"), (7.0, "/b/digits"))]
    found = compare([replace(read_run(path), sweep="plain") for path in paths])
    assert [(arm.name, arm.errors) for arm in found.arms] == [
        ("plain (data.folder=/a/digits)", [5.0]),
        ("plain (data.folder=/b/digits)", [7.0]),
    ]


def test_what_is_not_whole_is_named_and_left_out(finished: Build, tmp_path: Path) -> None:
    paths = [finished(1.0, seed) for seed in range(1, 6)]
    (paths[1] / "eval.json").unlink()
    (paths[2] / "eval.json").write_text('{"test": 3}')
    wrong = {"test": {"error_percent": 120, "images": 3}, "trained_parameters": 1, "deployed_parameters": 1}
    (paths[3] / "eval.json").write_text(json.dumps(wrong))
    (paths[4] / "student.safetensors").write_bytes(b"nothing")
    found = compare(*collect([str(tmp_path / "runs")], read_run))
    assert [len(arm.runs) for arm in found.arms] == [1]
    said = " ".join(found.notes)
    assert all(str(path) in said for path in paths[1:])
    assert "finish it: kfrl supervised train --resume" in said
    assert "less than or equal to 100" in said


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run is left to compare"):
        compare(*collect([str(tmp_path)], read_run))


def test_the_command_prints_and_writes_tables(
    finished: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, error in enumerate((3.0, 5.0, 4.0), start=1):
        shutil.move(finished(error, seed), tmp_path / "runs" / f"mine-{seed}")
    assert main([f"alone={tmp_path / 'runs'}", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "4.00 +- 1.00" in shown and "96.00 +- 1.00" in shown and "alone" in shown
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "| alone |   3 | 4.00 +- 1.00 | 3.00, 5.00, 4.00 | 96.00 +- 1.00 |" in page
    assert len((tmp_path / "out" / "runs.csv").read_text().splitlines()) == 4
    assert r"\toprule" in (tmp_path / "out" / "errors-digits.tex").read_text()
