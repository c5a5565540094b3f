import csv
import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kfrl.cli.main import main
from kfrl.compare.sheet import Sheet
from kfrl.sweep.folder import SweepFolder, SweepPlan, domain_of
from kfrl.sweep.space import Spec, make_trials

Build = Callable[..., Path]


@pytest.fixture
def runs(finished_run: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scratch and a flow on two games, three seeds each, but for one of the flow's; the flow's played one game less."""
    monkeypatch.chdir(tmp_path)
    for game, scratch, flow in (("Alien", (300, 320, 350), (400, 500)), ("Breakout", (2, 3, 7), (4, 9, 3))):
        for seed, score in enumerate(scratch, start=1):
            finished_run(Path("runs", game, "a3c", str(seed)), [score - 1, score + 1], game=game, seed=seed)
        for seed, score in enumerate(flow, start=1):
            path = Path("runs", game, "flow", str(seed))
            finished_run(path, [score], game=game, seed=seed, teachers="zoo:seaquest")
    return Path("runs")


def one_kind(runs: Path) -> None:
    """Give the flow's runs their second game."""
    for path in runs.rglob("eval.json"):
        path.write_text(re.sub(r'"scores": \[(\d+)\]', r'"scores": [\1, \1]', path.read_text()))


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_notes_and_quotes_are_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_kind(runs)
    assert main(["compare", "runs"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"a3c +│ +3 │ +323\.3 \[300\.0, 350\.0\]", said)
    assert re.search(r"knowledge-flow \(seaquest\) │ +2 │ +450\.0 │", said)
    assert "Across 2 games (Alien, Breakout)" in said
    assert said.index("Across 2 games") < said.index("QUOTED, not run here") < said.index("- Scores are those")
    assert "~1,700" in said
    assert "Games of these runs end after 108,000 frames: do not compare them with quoted scores" in said
    assert "knowledge-flow (seaquest) on Alien (2)" in said


def test_output_holds_every_form_of_the_comparison(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_kind(runs)
    assert main(["compare", "runs", "--output", "out"]) == 0
    assert files(Path("out")) == sorted(
        ["comparison.md", "scores.csv", "runs.csv", "aggregate.csv", "aggregate.tex", "quoted.tex"]
        + [
            f"{kind}-{game}.{end}"
            for game in ("alien", "breakout")
            for kind, end in (("curves", "png"), ("scores", "tex"), ("learning", "tex"))
        ]
    )
    written = capsys.readouterr().out.rpartition("Wrote out: ")[2]
    assert sorted(written.strip().split(", ")) == files(Path("out"))
    with Image.open("out/curves-alien.png") as picture:
        assert picture.size[0] > 800

    scores = {(row["game"], row["arm"]): row for row in read(Path("out/scores.csv"))}
    flow = scores["breakout", "knowledge-flow (seaquest)"]
    assert float(flow["score"]) == pytest.approx(16 / 3)
    assert float(flow["difference"]) == pytest.approx(16 / 3 - 4)
    assert float(flow["p_improvement"]) == pytest.approx((2 + 3 + 1.5) / 9)
    assert (flow["seeds"], flow["agent_steps"], flow["baseline"]) == ("3", "100", "a3c")
    assert scores["alien", "knowledge-flow (seaquest)"]["score_low"] == ""
    assert scores["alien", "a3c"]["difference"] == ""
    assert len(read(Path("out/runs.csv"))) == 11
    assert [row["arm"] for row in read(Path("out/aggregate.csv"))] == ["a3c", "knowledge-flow (seaquest)"]

    page = Path("out/comparison.md").read_text()
    assert "| knowledge-flow (seaquest) |" in page
    assert re.findall(r"\]\((.*)\)", page) == ["curves-alien.png", "curves-breakout.png"]
    assert page.index("## What to know beside the numbers") < page.index("## Quoted, not run here")
    latex = Path("out/scores-alien.tex").read_text()
    assert latex.startswith("% Alien: ")
    assert r"\toprule" in latex
    assert "% Fewer than 3 seeds" in latex
    assert r"human-normalised, \%" in latex


def test_each_run_has_its_own_areas(finished_run: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, height in enumerate((5.0, 7.0), start=1):
        finished_run(Path(f"runs/{seed}"), seed=seed, curve={50: (2.0, height), 100: (4.0, height + 2.0)})
    finished_run(Path("runs/flow"), teachers="zoo:seaquest")
    metrics = Path("runs/flow/metrics.csv")
    metrics.write_text("global_step,charts/episodic_return,charts/episodes\n50,1.0,1\n100,1.0,1\n")
    assert main(["compare", "runs", "--output", "out"]) == 0
    rows = {row["run"]: row for row in read(Path("out/runs.csv"))}
    # From 5 or 7 at the middle of the run straight to 2 points more: its mean is 1 above the first.
    assert [float(rows[f"runs/{seed}"]["area_alone"]) for seed in (1, 2)] == [6.0, 8.0]
    assert float(rows["runs/flow"]["area_training"]) == 1.0
    assert rows["runs/flow"]["area_alone"] == "", "its student was never evaluated"


def test_quoted_scores_are_in_no_file_of_numbers(runs: Path) -> None:
    one_kind(runs)
    assert main(["compare", "runs", "--output", "out"]) == 0
    for path in Path("out").iterdir():
        if path.suffix in (".csv", ".tex") and path.name != "quoted.tex":
            assert not re.search("ICLR|PFRL|PathNet", path.read_text()), path


def test_quoted_scores_have_a_file_of_their_own_that_says_so(runs: Path) -> None:
    one_kind(runs)
    assert main(["compare", "runs", "--output", "out"]) == 0
    latex = Path("out/quoted.tex").read_text()
    assert latex.startswith("% QUOTED, not run here\n% Quoted scores were published by others")
    assert "read off plots" in latex.partition(r"\begin")[0]
    assert re.search(r"Alien .*\\textasciitilde\{\}1,700", latex)


def test_mixed_numbers_of_games_are_all_in_the_title(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs", "--allow-mixed"]) == 0
    assert (
        "Alien: final student alone, 1 or 2 games a run, after 100 agent steps (400 frames)" in capsys.readouterr().out
    )


def test_what_an_earlier_comparison_left_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_kind(runs)
    assert main(["compare", "runs", "--output", "out"]) == 0
    assert "The folder also holds" not in capsys.readouterr().out
    assert main(["compare", "runs/Breakout", "--output", "out"]) == 0
    said = capsys.readouterr().out.rpartition("files of an earlier comparison: ")[2]
    assert said.strip().split(", ") == [
        "aggregate.csv",
        "aggregate.tex",
        "curves-alien.png",
        "learning-alien.tex",
        "scores-alien.tex",
    ]


def test_a_run_without_a_curve_is_missing_in_the_picture_and_the_others_are_not(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_kind(runs)
    drawn = []
    monkeypatch.setattr("kfrl.compare.plots.save_figure", lambda figure, target: drawn.append(figure))
    metrics = Path("runs/Breakout/a3c/2/metrics.csv")
    metrics.write_text("global_step,charts/episodic_return,charts/episodes\n50,1.0,1\n100,3.0,1\n")
    assert main(["compare", "runs/Breakout", "--output", "out"]) == 0
    (figure,) = drawn
    training, alone = figure.axes
    assert [line.get_label() for line in training.lines if not line.get_label().startswith("_")] == [
        "a3c, 3 seeds (2 of 3 alone)",
        "knowledge-flow (seaquest), 3 seeds",
    ]
    assert [line.get_xdata()[0] for line in alone.lines] == [pytest.approx(52e-6)] * 2, (
        "the first evaluation is at step 50"
    )


def test_bad_folders_among_good_ones_are_named_and_counted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_kind(runs)
    Path("runs/Alien/flow/1/eval.json").unlink()
    Path("runs/Breakout/flow/1/config.yaml").write_text("steps: [")
    Path("runs/empty").mkdir()
    assert main(["compare", "runs"]) == 0
    said = capsys.readouterr().out
    assert "Left out, 3 in all: runs/Alien/flow/1 (no eval.json" in said
    assert "runs/empty (empty)" in said
    assert "runs/Breakout/flow/1 (" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["No run is given"]),
        (["nowhere"], ["no folder nowhere"]),
        (["runs"], ["do not share", "episodes 1: runs/", "episodes 2: runs/", "--allow-mixed"]),
        (["empty"], ["No run is left", "1 in all", "empty"]),
        (["runs", "--allow-mixed", "--baseline", "distrall"], ["'distrall'", "Valid: a3c, "]),
        (["runs", "--allow-mixed", "--output", "a-file"], ["a-file is a file"]),
        (["runs", "--allow-mixed", "--output", "a-file/below"], ["Could not write a-file/below"]),
        (["a-file"], ["No run is left", "a-file (not a folder)"]),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    Path("empty").mkdir()
    Path("a-file").write_text("kept")
    before = sorted(map(str, Path().rglob("*")))
    assert main(["compare", *arguments, *(["--output", "out"] if "--output" not in arguments else [])]) == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == [], said
    assert sorted(map(str, Path().rglob("*"))) == before


def test_a_full_disk_leaves_no_half_file_and_no_traceback(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_kind(runs)
    Path("out").mkdir()
    Path("out/comparison.md").write_text("earlier")

    def full(path: Path, text: str, encoding: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["compare", "runs", "--output", "out"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert Path("out/comparison.md").read_text() == "earlier"
    assert files(Path("out")) == ["comparison.md", "curves-alien.png", "curves-breakout.png"]


def test_names_may_hold_what_markup_means_something_by(
    finished_run: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_run(Path("a"))
    finished_run(Path("b"), [9.0, 9.0], seed=2)
    assert main(["compare", r"[bold]$x^{|_%\=a", "plain=b", "--output", "out"]) == 0
    assert r"[bold]$x^{|_%\ " in capsys.readouterr().out
    assert r"[bold]$x^{\|_%\ " in Path("out/comparison.md").read_text()
    assert r"[bold]\$x\^{}\{|\_\%" in Path("out/scores-breakout.tex").read_text()


def test_a_sheet_in_markdown_by_hand() -> None:
    sheet = Sheet("t", ["arm", "n"], [["a", "1"], ["b|c", "20"]])
    head, line, *rows = (re.sub(" +", "", line) for line in sheet.markdown().splitlines())
    assert (head, rows) == ("|arm|n|", ["|a|1|", r"|b\|c|20|"])
    assert re.fullmatch(r"\|:-+\|-+:\|", line)


def test_help_needs_neither_torch_nor_matplotlib() -> None:
    code = """
import sys
from kfrl.cli.compare import main
try:
    main(["--help"])
except SystemExit as stop:
    sys.exit(stop.code or any(name in sys.modules for name in ("torch", "matplotlib", "numpy", "ale_py")))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "kfrl compare" in finished.stdout


def test_the_last_training_games_stand_beside_the_final_ones(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_kind(runs)
    for seed, (early, late) in enumerate([(10.0, 20.0), (30.0, 40.0)], start=1):
        path = Path("runs", "Alien", "flow", str(seed), "eval.json")
        reports = [{"frames": 40, "games": 3, "mean": early}, {"frames": 400, "games": 100, "mean": late}]
        path.write_text(json.dumps({**json.loads(path.read_text()), "training": reports}))
    assert main(["compare", "runs", "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "Alien: the mean of the last 100 training games" in said
    assert "Breakout: the mean of the last 100" not in said
    assert re.search(r"knowledge-flow \(seaquest\) │ +2 │ +20\.0 \(3 games\) │ +30\.0 │", said)
    assert "training-alien.tex" in files(Path("out"))
    assert "training-breakout.tex" not in files(Path("out"))
    rows = [row for row in read(Path("out/runs.csv")) if row["last_100_training_games"]]
    assert [(row["seed"], row["last_100_training_games"]) for row in rows] == [("1", "20.0"), ("2", "40.0")]


def test_the_best_areas_of_many_runs_stand_beside_all_of_them(
    finished_run: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(1, 6):
        level = (10.0 * seed, 1.0)
        finished_run(Path("runs", str(seed)), [7.0], {50: level, 100: level}, game="Alien", seed=seed)
    assert main(["compare", "runs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Alien, area under the training curve: mean of the top 3 runs, as papers report it" in said
    # Areas 10, 20, 30, 40 and 50: the best three are 40 in the mean.
    assert re.search(r"a3c │ 5 │ 30\.00 \+- 15\.81 │ 40\.00 │", said)


def test_runs_of_a_sweep_whose_teacher_was_replaced_are_two_arms(
    finished_run: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"game": "Breakout", "teachers": "zoo:seaquest", "seed": {"range": 3}, "lr": {"uniform": [0.1, 0.2]}}
    trials = make_trials(Spec(arms={"taught": {}}, settings=settings), domain_of(SweepPlan("agents.trials", ())))
    SweepFolder(Path("sweep")).prepare(SweepPlan("agents.trials", tuple(trials)))
    for trial, checksum in zip(trials, ("a" * 64, "a" * 64, "b" * 64), strict=True):
        finished_run(Path("sweep", trial.name), **{**trial.settings, "steps": 100}, teacher_sha256=(checksum,))
    assert main(["compare", "sweep"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"taught \(teacher\.file=aaaaaaaa\) +│ +2 │", said)
    assert re.search(r"taught \(teacher\.file=bbbbbbbb\) +│ +1 │", said)
