"""Methods in files outside the package, with settings of their own."""

from pathlib import Path

import pytest

from kfrl.cli.main import main
from kfrl.errors import UserError
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods import get_method

FILE = """
from dataclasses import dataclass
from kfrl.config import Positive
from kfrl.supervised.methods.base import Method

class Mine(Method):
    @dataclass(frozen=True)
    class Settings:
        {setting}: Positive = 2.0
        \"\"\"How much.\"\"\"

METHOD = Mine
"""
TRAIN = "supervised train --data digits --net mlp-8 --epochs 1 --batch-size 512 --run-dir run".split()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "There is no file"),
        ("import nothing_such", "line 1: ModuleNotFoundError: No module named 'nothing_such'"),
        ("x = 1\nx = = 2", "line 2: SyntaxError"),
        ("x = 1\n\n\n1 / 0", "line 4: ZeroDivisionError"),
        (
            "from kfrl.supervised.methods.base import Method\nclass A(Method):\n    def loss(self): ...\nMETHOD = A",
            "line 2: UserError: Method A defines loss(), which is not called: it is losses() now",
        ),
        ("x = 1", "defines no method. Derive a class from kfrl.supervised.methods.base.Method and add"),
        ("METHOD = int", "expected a class derived from kfrl.supervised.methods.base.Method, got <class 'int'>"),
        ("from agents.methods.base import Method as METHOD", "derived from kfrl.supervised.methods.base.Method"),
        (FILE.format(setting="epochs"), "has a setting 'epochs', which is the name of a common setting"),
    ],
)
def test_a_method_file_that_cannot_be_used_is_explained(
    text: str | None, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        Path("mine.py").write_text(text)
    assert main([*TRAIN, "--method", "mine.py"]) == 2
    said = capsys.readouterr().err
    assert complaint in said and "Traceback" not in said
    assert not Path("run").exists()


def test_an_unknown_method_tells_of_files() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'kd'.*--method path/to/file.py"):
        get_method("kdd")


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ({"scale": 3.0}, "Unknown key scale. Did you mean scales?"),
        ({"scales": -1.0}, "scales: Input should be greater"),
    ],
)
def test_settings_of_a_method_are_checked(own: dict[str, float], complaint: str) -> None:
    Path("mine.py").write_text(FILE.format(setting="scales"))
    method = get_method("mine.py")
    with pytest.raises(UserError) as error:
        method.resolve_settings(SupervisedConfig(methods={"mine": own}), ())
    assert complaint in str(error.value)
    assert method.resolve_settings(SupervisedConfig(), ()) == {"mine": {"scales": 2.0}}


def test_a_setting_may_have_the_name_of_another_methods(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(FILE.format(setting="temperature"))
    Path("both.yaml").write_text("methods: {mine: {temperature: 3.0}, kd: {temperature: 2.0}}")
    assert main([*TRAIN, "--config", "both.yaml", "--method", "mine.py", "--temperature", "5"]) == 0
    assert "methods:\n  mine:\n    temperature: 5.0\n" in Path("run/config.yaml").read_text()
    assert "kd" not in Path("run/config.yaml").read_text(), "another method's settings were not used"


@pytest.mark.parametrize(
    ("command", "title"), [(["train"], "knowledge-flow"), (["supervised", "train"], "knowledge-flow")]
)
def test_help_shows_a_methods_settings_when_the_method_is_named(
    command: list[str], title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for flags in ([], ["--method", "knowledge-flow"]):
        with pytest.raises(SystemExit):
            main([*command, *flags, "--help"])
        shown.append(capsys.readouterr().out)
    short, long = shown
    assert "--transform " not in short and "--seed " in short
    assert "--transform " in long and f"{title} options" in long
    assert "settings.flow" not in short + long and "settings options" not in short + long
