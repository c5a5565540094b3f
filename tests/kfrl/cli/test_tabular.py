import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kfrl.cli.main import main
from kfrl.config import load_config
from kfrl.runs.folder import collect
from kfrl.runs.provenance import sha256
from kfrl.tabular import ensembles
from kfrl.tabular.compare import Difference, Record, compare, corrected_difference, difference, read_run
from kfrl.tabular.config import TabularConfig
from kfrl.tabular.run import ERROR, resolve, split_of, train
from kfrl.tabular.students import load_student

SMALL = ["--trees", "5", "--node-cases", "60", "--folds", "3", "--updates", "60", "--hidden", "4", "--test", "0.25"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    rows = [["size", "weight", "colour", "class"]]
    for _ in range(120):
        size, weight = generator.random(2)
        colour = ("red", "green", "blue")[generator.integers(3)]
        rows.append([f"{size:.3f}", f"{weight:.3f}", colour, "big" if size > 0.5 and colour != "red" else "small"])
    with Path("things.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def run(*flags: str) -> int:
    return main(["tabular", "train", "--data", "things.csv", *SMALL, *flags])


def test_a_born_again_tree_from_end_to_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--splits", "3", "--run-dir", "runs/tree") == 0
    folder = here / "runs" / "tree"
    names = {"config.yaml", "student.safetensors", "metrics.csv", "eval.json", "log.txt", "tree.txt", "tree.png"}
    assert {path.name for path in folder.iterdir()} >= names
    result = json.loads((folder / "eval.json").read_text())
    assert len(result["test"]["errors"]) == 3
    assert result["test"]["error_percent"] < 20
    assert set(result["others"]) == {"teacher"}
    assert "colour is" in (folder / "tree.txt").read_text()

    assert main(["tabular", "eval", "runs/tree", "--json", "again.json", "--predictions", "answers.csv"]) == 0
    again = json.loads(Path("again.json").read_text())
    assert again["error_percent"] == pytest.approx(result["test"]["errors"][0])
    assert Path("answers.csv").read_text().startswith("predicted,big,small\n")
    assert main(["tabular", "eval", "runs/tree", "--data", "things.csv"]) == 0
    Path("new.csv").write_text("colour,weight,size\nred,0.5,0.9\ngreen,0.5,0.9\n")
    assert main(["tabular", "eval", "runs/tree", "--data", "new.csv", "--predictions", "new-answers.csv"]) == 0
    assert [line.split(",")[0] for line in Path("new-answers.csv").read_text().splitlines()[1:]] == ["small", "big"]

    assert run("--splits", "3", "--method", "cart", "--run-dir", "runs/cart") == 0
    capsys.readouterr()
    assert main(["tabular", "compare", "runs", "--output", "tables"]) == 0
    said = capsys.readouterr().out
    assert "born-again-tree (arc-fs)" in said
    assert "minus cart" in said
    assert len(Path("tables/splits.csv").read_text().splitlines()) == 1 + 6


def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--splits", "2", "--run-dir", "runs/whole") == 0
    calls = []

    def stop(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return made(*arguments)

    from kfrl.tabular import run as tabular_run

    made = tabular_run.make_teacher
    monkeypatch.setattr(tabular_run, "make_teacher", stop)
    assert run("--splits", "2", "--run-dir", "runs/half") == 130
    assert "kfrl tabular train --resume runs/half" in capsys.readouterr().out
    assert main(["tabular", "train", "--resume", "runs/half"]) == 0
    assert (here / "runs/half/eval.json").read_text() == (here / "runs/whole/eval.json").read_text()
    assert main(["tabular", "train", "--resume", "runs/half"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_compression_with_every_way(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [item for item in ensembles.learners(5) if item[0] in ("tree-gini-5", "naive-bayes", "net-8-1")]
    monkeypatch.setattr(ensembles, "learners", lambda columns: kept)
    flags = ["--method", "compression", "--ways", "munge", "random", "nbe", "real", "--cases", "100", "200"]
    assert run(*flags, "--splits", "2", "--components", "2", "--run-dir", "runs/net") == 0
    result = json.loads((here / "runs/net/eval.json").read_text())
    mimics = {f"{way}-{count}" for way in ("munge", "random", "nbe") for count in (100, 200)} | {"real-0"}
    assert set(result["others"]) == {"teacher", "best-single", "best-net", *mimics}
    assert result["test"]["rmse"] == result["others"]["munge-200"]["rmse"]
    assert (here / "runs/net/curves.png").exists()
    assert main(["tabular", "compare", "runs"]) == 0
    assert main(["tabular", "eval", "runs/net"]) == 0
    # The net teaches a tree, on the same split alone.
    flags = ["--teacher", "runs/net", "--run-dir", "runs/tree"]
    assert run(*flags) == 0
    assert main(["tabular", "train", "--data", "things.csv", *SMALL, *flags, "--seed", "2"]) == 2


def taught(number: int, teacher: str, data: str = "things.csv", splits: int = 1) -> int:
    flags = ["--teacher", teacher, "--splits", str(splits), "--run-dir", f"runs/{number}"]
    return main(["tabular", "train", "--data", data, *SMALL, *flags])


def test_teachers_of_one_name_are_two_arms(here: Path) -> None:
    assert run("--method", "cart", "--run-dir", "good/teacher") == 0
    assert run("--run-dir", "bad/teacher") == 0
    assert taught(1, "good/teacher") == taught(2, "good/teacher") == taught(3, "bad/teacher") == 0
    first, last = (sha256(here / name / "teacher/student.safetensors")[:8] for name in ("good", "bad"))
    found = compare(*collect(["runs"], read_run))
    assert {arm.name: len(arm.runs) for arm in found.arms} == {
        f"born-again-tree (teacher, teacher.file={first})": 2,
        f"born-again-tree (teacher, teacher.file={last})": 1,
    }
    named = compare(*collect(["all=runs"], read_run))
    assert [len(arm.runs) for arm in named.arms] == [3]
    assert "things: runs of all differ in teacher.file." in named.notes


def test_tables_of_one_name_are_two_tables(here: Path) -> None:
    text = Path("things.csv").read_text().splitlines(keepends=True)
    for folder, rows in (("x", text), ("y", text[:80])):
        Path(folder).mkdir()
        Path(folder, "things.csv").write_text("".join(rows))
        for method in ("cart", "born-again-tree"):
            flags = ["--method", method, "--splits", "2", "--run-dir", f"runs/{folder}/{method}"]
            assert main(["tabular", "train", "--data", f"{folder}/things.csv", *SMALL, *flags]) == 0
    found = compare(*collect(["runs"], read_run))
    assert found.data == tuple(str(here / folder / "things.csv") for folder in "xy")
    for data in found.data:
        (tree,) = [arm for arm in found.arms if arm.data == data and arm.name.startswith("born-again")]
        base = found.base(data)
        assert base is not None
        assert base.runs[0].path.parent == tree.runs[0].path.parent
        assert difference(tree, base) is not None


def test_a_run_keeps_to_the_file_of_its_teacher(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--method", "cart", "--run-dir", "good") == 0
    assert run("--method", "cart", "--run-dir", "bad", "--seed", "2") == 0
    Path("other.csv").write_text(Path("things.csv").read_text())
    before = sha256(here / "good/student.safetensors")
    assert taught(1, "good", "other.csv", splits=2) == 0
    assert load_student(here / "runs/1/student.safetensors").card.teacher_sha256 == (before,)
    assert json.loads(Path("runs/1/eval.json").read_text())["teacher_sha256"] == [before]
    assert load_config(here / "runs/1/config.yaml", TabularConfig).teacher_sha256 == (before,)
    shutil.copy("bad/student.safetensors", "good/student.safetensors")
    Path("runs/1/eval.json").unlink()
    assert main(["tabular", "train", "--resume", "runs/1"]) == 2
    assert f"and the config says {before}. Restore the file" in capsys.readouterr().err
    assert main(["tabular", "train", "--config", "runs/1/config.yaml", "--run-dir", "runs/2"]) == 2
    again = ["--config", "runs/1/config.yaml", "--run-dir", "runs/2", "--teacher-sha256"]
    assert main(["tabular", "train", *again]) == 0


def test_splits_follow_from_the_seed_alone(here: Path) -> None:
    first = TabularConfig(data="things.csv", method="cart", test=0.25)
    other = TabularConfig(data="things.csv", method="born-again-tree", teacher="bagging", test=0.25)
    table = resolve(first).table
    for index in range(2):
        one, two = split_of(table, first, index), split_of(table, other, index)
        assert (one.test == two.test).all()
        assert not (one.test & (one.learning | one.validation)).any()
    assert (split_of(table, first, 0).test != split_of(table, first, 1).test).any()


def test_train_is_a_function(here: Path) -> None:
    result = train(resolve(TabularConfig(data="things.csv", method="cart", run_dir=here / "run")))
    assert result == json.loads((here / "run/eval.json").read_text())
    assert load_student(here / "run/student.safetensors").card.classes == ("big", "small")


def test_the_interval_and_p_of_repeated_splits_by_hand() -> None:
    # Of 0, 1, 2: s = 1, 1/3 + 1/9 = 4/9, so 2/3 times t(0.975, 2) = 4.303; of two degrees of freedom
    # p = 1 - t / sqrt(2 + t^2), with t = 1.5.
    found = corrected_difference([0.0, 1.0, 2.0], 1 / 9)
    assert (found.mean, found.splits) == (1.0, 3)
    assert (found.low, found.high) == pytest.approx((1 - 2.869, 1 + 2.869), abs=1e-3)
    assert found.p == pytest.approx(1 - 1.5 / math.sqrt(4.25))


def test_a_difference_that_is_equal_in_all_splits_has_no_interval(here: Path) -> None:
    assert corrected_difference([0.0] * 10, 1 / 9) == Difference(0.0, 10)
    # 0.1 + 0.2 is not 0.3, and 0.3 - 0.1 is not 0.2.
    assert corrected_difference([0.2, 0.3 - 0.1], 1 / 9).low is None
    for folder in ("runs/one", "second"):
        assert run("--method", "cart", "--splits", "3", "--run-dir", folder) == 0
    assert main(["tabular", "compare", "runs", "second=second", "--output", "tables"]) == 0
    (row,) = [line for line in Path("tables/comparison.md").read_text().splitlines() if line.startswith("| second")]
    assert [cell.strip() for cell in row.split("|")[7:9]] == ["+0.00", "-"]


def test_the_interval_knows_how_many_cases_were_learned_from(here: Path) -> None:
    for method in ("cart", "born-again-tree"):
        flags = ["--splits", "4", "--train-cases", "30", "--seed", "3", "--run-dir", f"runs/{method}"]
        assert run("--method", method, *flags) == 0
    cart, tree = compare(*collect(["runs"], read_run)).arms
    assert [row["test/cases"] for row in tree.runs[0].rows] == [30.0] * 4
    assert [row["train/cases"] for row in tree.runs[0].rows] == [30.0] * 4
    gaps = [one - other for one, other in zip(tree.values(ERROR), cart.values(ERROR), strict=True)]
    # As many test cases as training cases, although a quarter of the table is for the test.
    assert len(set(gaps)) > 1
    assert difference(tree, cart) == corrected_difference(gaps, 1.0)
    # Runs of earlier versions did not write how many they learned from.
    earlier = [replace(arm, runs=tuple(without(run, "train/cases") for run in arm.runs)) for arm in (tree, cart)]
    assert difference(*earlier) == corrected_difference(gaps, 1.0)
    whole = [replace(arm, runs=tuple(on_all(run) for run in arm.runs)) for arm in earlier]
    assert difference(*whole) == corrected_difference(gaps, 0.25 / 0.75)


def without(run: Record, name: str) -> Record:
    return replace(run, rows=tuple({key: value for key, value in row.items() if key != name} for row in run.rows))


def on_all(run: Record) -> Record:
    return replace(run, config=replace(run.config, train_cases=None))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target", "klass"], "Unknown target column 'klass'. Did you mean 'class'?"),
        (["--teacher", "arc-sf"], "Unknown teacher 'arc-sf'. Did you mean 'arc-fs'?"),
        (["--method", "cart", "--teacher", "arc-fs"], "Method cart takes no teacher"),
        (["--train-cases", "500"], "without its test cases things has 90 cases"),
        (["--data", "thing.csv"], "Did you mean 'things.csv'"),
    ],
)
def test_bad_input_is_one_sentence(
    here: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*flags) == 2
    assert words in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_student_of_more_classes_than_its_teacher_knows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--method", "cart", "--run-dir", "runs/teacher") == 0
    text = Path("things.csv").read_text()
    Path("more.csv").write_text(text + "0.1,0.1,red,tiny\n" * 10)
    flags = ["--data", "more.csv", "--method", "compression", "--teacher", "runs/teacher", *SMALL]
    assert main(["tabular", "train", *flags]) == 2
    assert "has 2 classes (big, small), and the student 3: it cannot teach 'tiny'" in capsys.readouterr().err


def test_damaged_students_and_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--method", "cart", "--run-dir", "runs/one") == 0
    shutil.copytree("runs/one", "runs/two")
    Path("runs/two/metrics.csv").write_text("global_step\n")
    assert main(["tabular", "compare", "runs"]) == 0
    assert "lacks rows of its 1 splits" in capsys.readouterr().out
    Path("runs/two/student.safetensors").write_bytes(b"\x80\x04pickle")
    assert main(["tabular", "eval", "runs/two"]) == 2
    assert "a Python pickle, which can run code" in capsys.readouterr().err
