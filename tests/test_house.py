"""The house itself: packages, layout, packaging, and that what the pages tell people to type exists."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kfrl", "agents", "envs")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL_WORDS = {"cd", "git", "source", "tensorboard", "torchrun"}
"""Commands of other programs that a page may show."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def ident(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- packages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_that_python_finds_is_the_one_beside_this_folder(package: str) -> None:
    found = importlib.import_module(package).__file__
    assert found is not None, f"{package}/__init__.py is missing"
    assert Path(found).resolve().parent == ROOT / package, "another distribution shadows it"


@pytest.mark.parametrize("path", SOURCES, ids=ident)
def test_every_module_imports(path: Path) -> None:
    if path.name == "__main__.py":
        compile(path.read_text(encoding="utf-8"), path, "exec")
        return
    module = importlib.import_module(module_name(path))
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == path


def test_the_command_starts_without_loading_torch() -> None:
    code = "import sys, kfrl.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- layout -------------------------------------------------------------------------------------------------


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert not [ident(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_no_package_below_tests() -> None:
    # tests/agents/__init__.py would shadow `agents`.
    assert not [ident(path) for path in (ROOT / "tests").rglob("__init__.py")]


def test_folders_below_tests_are_those_of_the_packages() -> None:
    folders = {
        path.parent.relative_to(ROOT / "tests")
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.parent != ROOT / "tests"
    }
    known = {path.parent.relative_to(ROOT) for path in SOURCES}
    known |= {path.relative_to("kfrl") for path in known if path.parts[0] == "kfrl"}
    assert not sorted(map(str, folders - known)), "tests/ mirrors the packages"


# --- packaging ----------------------------------------------------------------------------------------------


def test_torch_range() -> None:
    # A wider range makes pip take several GB of CUDA libraries where a CPU wheel of this range lies at hand.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = [name for name in project["dependencies"] if name.startswith("torch")]
    assert torch == ["torch>=2.6,<2.14"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_packages_and_the_configs(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name[0] != "."
    }
    shared = f"{'-'.join(wheel.name.split('-')[:2])}.data/data/share/kfrl"
    ours |= {f"{shared}/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert not sorted(ours - held), "a pattern of .gitignore keeps these out of the wheel"


def test_a_run_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*install, "--disable-pip-version-check", str(wheel)], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    # What kfrl needs is taken from where the tests run, so that torch is not installed again; a .pth file in there, as
    # that of an editable kfrl, does not count.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    work = tmp_path / "work"
    work.mkdir()
    quick = "--algo a2c --envs-per-worker 2 --steps 10 --convs 4 8 8 --hidden 8 --curve-points 0 --eval-episodes 0"
    unfolded = "--fold-observations 0 --no-choose-channels"
    config = f"train --config configs/atari/quickstart.yaml {unfolded} --run-dir run"
    clean = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [home / "bin" / "kfrl", *config.split(), *quick.split()]
    ran = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "zoo:seaquest" in (work / "run" / "config.yaml").read_text()
    assert (work / "run" / "student.safetensors").is_file()
    where = [python, "-c", "import agents, envs, kfrl; print(agents.__file__, envs.__file__, kfrl.__file__)"]
    found = subprocess.run(where, cwd=work, env=clean, capture_output=True, text=True, check=True).stdout.split()
    assert all(Path(file).is_relative_to(packages) for file in found)


# --- what the pages tell people to type ---------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """The commands in a page's shell blocks, fenced or indented, as words, without prompts, comments and settings."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^ *```(?:bash|sh|shell|console)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (?:kfrl|python|make) (?:.*\\\n)*.*\n", text, re.MULTILINE)
    for block in (*fenced, *indented):
        for line in block.replace("\\\n", " ").splitlines():
            if line.lstrip().startswith("#"):
                continue
            lexer = shlex.shlex(re.sub(r"^\s*\$ ", "", line), posix=True, punctuation_chars="|&;")
            lexer.whitespace_split = True
            command: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("|&;"):
                    if command:
                        yield command
                    command = []
                elif command or not re.match(r"[A-Za-z_]+=", word):
                    command.append(word)


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", text, re.MULTILINE))


@functools.cache
def known_flags(names: tuple[str, ...]) -> set[str]:
    """The flags that the help of a command, or of its sub-command, names; those of any method too where one trains."""
    from agents.methods import method_names
    from kfrl.cli.main import main
    from kfrl.supervised.methods import method_names as classifier_methods

    grouped = {"teachers", "supervised", "tabular"}
    words = names if names[:1] and names[0] in grouped else names[:1]
    trained = {("train",): method_names(), ("supervised", "train"): classifier_methods()}.get(words, ())
    shown = io.StringIO()
    algos = [["--algo", name] for name in ("ppo", "acktr")] if words == ("train",) else []
    for chosen in ([], *algos, *(["--method", name] for name in trained)):
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([*words, *chosen, "--help"])
    return {"--help", "--version", *re.findall(r"--[a-z][a-z0-9-]*", shown.getvalue())}


def complaint(command: list[str]) -> str | None:
    """What is wrong with a command that a page shows, or None."""
    from kfrl.cli.main import COMMANDS

    program, *arguments = command
    program = program.rpartition("/")[2]
    if program == "make":
        unknown = {word for word in arguments if word[0] != "-" and "=" not in word} - make_targets()
        if unknown:
            return f"the Makefile has no target {', '.join(sorted(unknown))}"
    elif program == "kfrl":
        if not arguments or (arguments[0] not in COMMANDS and arguments[0] not in ("--help", "--version")):
            return f"kfrl has no command {' '.join(arguments[:1])!r}"
        given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        names = tuple(itertools.takewhile(lambda word: re.fullmatch("[a-z]+", word), arguments))[:2]
        strange = given - known_flags(names)
        if strange:
            return f"kfrl {names[0]} has no flag {', '.join(sorted(strange))}"
    elif program == "python":
        if not arguments or not (ROOT / arguments[0]).is_file():
            return f"there is no script {' '.join(arguments[:1])!r}"
    elif program not in SHELL_WORDS:
        return f"{program!r} is neither make, nor kfrl, nor python, nor one of {sorted(SHELL_WORDS)}"
    configs = re.findall(r"\bconfigs/[\w./-]+", " ".join(arguments))
    missing = [path for path in configs if not (ROOT / path).exists()]
    return f"there is no {missing[0]}" if missing else None


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_commands_on_a_page_exist(page: Path) -> None:
    wrong = {shlex.join(command): problem for command in commands(page) if (problem := complaint(command))}
    assert not wrong


def test_the_readme_shows_commands() -> None:
    # Else the test above would pass on a page that it cannot read.
    assert {command[0] for command in commands(ROOT / "README.md")} >= {"make", "kfrl"}


def test_commands_are_found_on_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\n# a comment\n$ make train  # another\n"
        "SEED=1 kfrl train \\\n  --game Alien && cd runs\n```\n"
        "```python\nnot a command\n```\n\n    kfrl games \\\n      pac\n\nkfrl is no command here.\n"
    )
    assert list(commands(page)) == [
        ["make", "train"],
        ["kfrl", "train", "--game", "Alien"],
        ["cd", "runs"],
        ["kfrl", "games", "pac"],
    ]


@pytest.mark.parametrize(
    "command",
    [
        "make coffee",
        "kfrl coffee",
        "coffee",
        "python coffee.py",
        "kfrl train --config configs/coffee.yaml",
        "kfrl train --game Alien --coffee 3",
        "kfrl supervised train --game Alien",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(command: str) -> None:
    assert complaint(command.split())


def test_configs_that_the_makefile_names_exist() -> None:
    named = re.findall(r"\bconfigs/[\w./-]+\.yaml", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert named
    assert not [path for path in named if not (ROOT / path).is_file()]
