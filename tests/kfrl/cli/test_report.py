"""`kfrl report`: what its page holds, of whole runs, half-written ones, and runs of both domains."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kfrl.cli.main import main
from kfrl.sweep.folder import SweepFolder, SweepPlan, domain_of
from kfrl.sweep.space import Spec, make_trials

Build = Callable[..., Path]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def charts(page: str) -> dict[str, dict[str, object]]:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return dict(json.loads(data)["charts"])


def text(page: str) -> str:
    """Without what draws."""
    return html.unescape(page.split("<script", 1)[0])


def test_one_run_has_curves_links_games_settings_and_provenance(finished_run: Build) -> None:
    run = finished_run(Path("run"), [3.0, 5.0], {50: (1.0, 2.0), 100: (3.0, 4.0)}, teachers="zoo:seaquest", seed=7)
    lines = ["global_step,charts/episodic_return,charts/episodes,eval/mean_return,flow/p_student/fc"]
    lines[0] += ",flow/p_teacher/seaquest/fc,fold/r2/fc"
    lines += ["50,1,1,2,0.25,0.75,", "100,3,1,4,0.5,0.5,0.875", ""]
    (run / "metrics.csv").write_text("\n".join(lines))
    assert main(["report", "run"]) == 0
    page = Path("report.html").read_text()
    drawn = [chart for chart in charts(page).values() if chart["title"] == "Returns"]
    training, alone = drawn[0]["curves"]
    assert (alone["x"], alone["y"]) == ([50.0, 100.0], [2.0, 4.0])
    assert training["y"][-1] == 3.0
    words = text(page)
    assert "knowledge-flow" in words
    assert re.search(r">fc</td><td>0\.500</td><td>0\.500</td><td>0\.875<", page), "p at the end and R2 of the fold"
    assert re.search(r">2</td><td>5</td>", page), "the second final game"
    assert re.search(r">seed</td><td[^>]*>7<", page)
    assert ">abc<" in page, "the commit"
    assert "Limits of the comparison of games" in words
    assert "Fewer than 3 seeds" in words


def test_a_comparison_has_intervals_and_settings_that_differ(
    finished_run: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2, 3):
        finished_run(Path("runs/a3c", str(seed)), [seed, seed + 2.0], seed=seed)
        finished_run(Path("runs/flow", str(seed)), [seed + 9.0] * 2, seed=seed, teachers="zoo:seaquest", lr=0.5)
    assert main(["report", "runs", "--output", "out.html"]) == 0
    assert "Wrote out.html: 6 runs, " in capsys.readouterr().out
    page = Path("out.html").read_text()
    words = text(page)
    assert "human-normalised, % [95 %]" in words
    assert "minus a3c [95 %]" in words
    bands = [chart for chart in charts(page).values() if "range over seeds" in str(chart["title"])]
    assert [len(curve["low"]) > 1 for chart in bands for curve in chart["curves"]] == [True] * 4
    differing = words.partition("<caption>Settings that differ</caption>")[2].partition("</table>")[0]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", differing)[0] == "run"
    assert {"seed", "lr", "teachers"} <= set(re.findall(r"<th[^>]*>([^<]*)</th>", differing))
    assert "run_dir" not in differing


def test_other_teachers_files_are_settings_that_differ(finished_run: Build) -> None:
    for name in "ab":
        finished_run(Path("runs", name), teachers="zoo:seaquest", teacher_sha256=(name * 64,))
    assert main(["report", "runs", "--output", "out.html"]) == 0
    differing = text(Path("out.html").read_text()).partition("<caption>Settings that differ</caption>")[2]
    assert re.findall(r"<t[hd][^>]*>([^<]*)</t", differing.partition("</table>")[0]) == [
        *("run", "teacher_sha256"),
        *("runs/a", "aaaaaaaa"),
        *("runs/b", "bbbbbbbb"),
    ]


def test_names_and_notes_are_data_and_never_markup(finished_run: Build) -> None:
    run = finished_run(Path("<script>alert(1)<", "script>"), teachers="zoo:seaquest")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1", 'seed: 1\n"<img src=x>": "</script><b>"'))
    assert main(["report", "<i>=" + str(run)]) == 0
    page = Path("report.html").read_text()
    assert "<img" not in page.partition("<script")[0]
    assert "<i>" not in page.partition("<script type")[0]
    assert "&lt;script&gt;alert(1)" in page
    assert "</script><b>" not in page


def test_broken_and_half_written_runs_are_shown_as_far_as_they_go(
    finished_run: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    half, damaged, cut = (finished_run(Path("runs", name)) for name in ("half", "damaged", "cut"))
    for name in ("eval.json", "student.safetensors"):
        (half / name).unlink()
    (damaged / "config.yaml").write_text("game: [Breakout\n")
    (damaged / "eval.json").write_text('{"scores": [1,')
    (cut / "metrics.csv").write_text("global_step,charts/episodic_return\n50,nan\n70,ab\n")
    (cut / "student.safetensors").write_bytes(b"\x00" * 20)
    (cut / "eval.json").write_text("[1]")
    assert main(["report", "runs"]) == 0
    assert "3 runs, 3 of them incomplete" in capsys.readouterr().out
    words = text(Path("report.html").read_text())
    for told in (
        "There is no eval.json: the run was not finished",
        "config.yaml is damaged",
        "metrics.csv is damaged: could not convert string to float: 'ab'",
        "eval.json is damaged: it holds a list.",
        "student.safetensors cannot be read",
    ):
        assert told in words, told


def test_runs_of_both_domains_stand_on_one_page(finished_run: Build) -> None:
    finished_run(Path("runs/game"))
    flags = "--data digits --net mlp-8 --epochs 2 --batch-size 512 --run-dir runs/images".split()
    assert main(["supervised", "train", *flags]) == 0
    assert main(["report", "runs"]) == 0
    page = Path("report.html").read_text()
    words = text(page)
    assert "Limits of the comparison of games" in words
    assert "Limits of the comparison of images" in words
    assert "test error" in words
    (accuracy,) = [chart for chart in charts(page).values() if chart["y"] == "%"]
    assert accuracy["x"] == "epochs"
    assert all(0 <= value <= 100 for curve in accuracy["curves"] for value in curve["y"])


def test_a_video_in_the_folder_is_put_into_the_page(finished_run: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(Path("run"))
    (run / "play.mp4").write_bytes(b"film")
    assert main(["report", "run"]) == 0
    assert 'src="data:video/mp4;base64,ZmlsbQ=="' in Path("report.html").read_text()
    monkeypatch.setattr("kfrl.compare.report.VIDEO_BYTES", 3)
    assert main(["report", "run"]) == 0
    page = Path("report.html").read_text()
    assert "data:video/mp4" not in page
    assert "play.mp4 is larger than" in page


def test_thirty_runs_stay_far_below_five_megabytes(finished_run: Build) -> None:
    points = {step: (float(step), float(step)) for step in range(250, 50_250, 250)}
    for seed in range(1, 31):
        finished_run(Path("runs", str(seed)), [1.0 * seed, 2.0], points, seed=seed, steps=50_000)
    assert main(["report", "runs"]) == 0
    assert Path("report.html").stat().st_size < 3e6
    assert not re.findall(r'(?:src|href)="(?!#|data:)', Path("report.html").read_text().partition("<script")[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "No run is given"),
        ("nowhere", "There is no folder nowhere."),
        ("run --output report.pdf", "--output expects a file that ends in .html, got 'report.pdf'."),
        ("run --output page.html", "--output expects a file, and page.html is a folder."),
        ("empty", "empty: no run can be read"),
    ],
)
def test_bad_input(words: str, message: str, finished_run: Build, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(Path("run"))
    Path("page.html").mkdir()
    Path("empty").mkdir()
    assert main(["report", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_without_bokeh_it_says_what_to_install(
    finished_run: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(Path("run"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["report", "run"]) == 2
    assert "pip install bokeh" in capsys.readouterr().err
    assert not Path("report.html").exists()


def test_the_runs_of_a_sweeps_arm_are_one_arm_although_their_settings_are_drawn(finished_run: Build) -> None:
    settings = {"game": "Breakout", "seed": {"range": 3}, "lr": {"uniform": [0.1, 0.2]}}
    trials = make_trials(Spec(arms={"plain": {}}, settings=settings), domain_of(SweepPlan("agents.trials", ())))
    SweepFolder(Path("sweep")).prepare(SweepPlan("agents.trials", tuple(trials)))
    for trial in trials:
        finished_run(Path("sweep", trial.name), **{**trial.settings, "steps": 100})
    assert main(["report", "sweep"]) == 0
    page = Path("report.html").read_text()
    assert re.search(r"<td[^>]*>plain</td><td[^>]*>3</td>", page)
