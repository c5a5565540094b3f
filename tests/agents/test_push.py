"""A run goes to a stand-in of the Hub on this machine, through the Hub's own client."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from agents.teachers.formats import load_agent, read_card, save_agent
from kfrl.cli.main import main
from kfrl.config import dump_config
from kfrl.nets.images.registry import make_net
from kfrl.runs.provenance import sha256
from kfrl.supervised import classifiers
from kfrl.supervised.config import SupervisedConfig

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """What of the Hub's protocol an upload needs: who am I, make a repository, git LFS, and a commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.may_write = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def answer(self, status: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refused(self) -> bool:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
            return True
        return False

    def do_GET(self) -> None:
        if self.refused():
            return
        if self.path == "/api/whoami-v2":
            self.answer(200, {"name": "me", "type": "user", "orgs": [{"name": "our-lab"}]})
        elif (repo := self.path.removeprefix("/api/models/")) in self.server.repos:
            self.answer(200, {"id": repo, "sha": "0" * 40, "siblings": [], "tags": []})
        else:
            self.answer(404, {"error": "Repository not found"})

    def do_PUT(self) -> None:
        self.server.blobs[self.path.removeprefix("/blobs/")] = self.body()
        self.answer(200, {})

    def do_POST(self) -> None:
        content = self.body()
        if self.refused():
            return
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(content)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if not self.server.may_write:
                self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            elif repo in self.server.repos:
                self.answer(
                    409, {"error": "You already created this model repo", "url": f"{self.server.address}/{repo}"}
                )
            else:
                self.server.repos[repo], self.server.private[repo] = (
                    {},
                    asked.get("visibility") == "private" or asked.get("private", False),
                )
                self.answer(200, {"url": f"{self.server.address}/{repo}"})
        elif path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = [("lfs" if name.endswith(".safetensors") else "regular", name) for name in files]
            self.answer(200, {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for m, n in modes]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            blobs = [
                {**each, "actions": {"upload": {"href": f"{self.server.address}/blobs/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": blobs})
        elif path.endswith("/commit/main"):
            self.commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), content)
        else:
            self.answer(404, {"error": path})

    def commit(self, repo: str, content: bytes) -> None:
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.repos[repo][value["path"]] = self.server.blobs[value["oid"]]
        self.answer(200, {"commitUrl": f"{self.server.address}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path, finished_run: Callable[..., Path]) -> Path:
    """Two teachers, one of them called like markup; its eval.json is of this student."""
    path = finished_run(tmp_path / "home" / "run", (10.0, 30.0), teachers="/home/me/secret/own.safetensors,zoo:pong")
    student = path / "student.safetensors"
    agent = load_agent(student)
    card = replace(
        agent.card, teachers=("<script>|", "pong"), teacher_sha256=("a" * 64, "b" * 64), caveat="Two [games]."
    )
    save_agent(student, agent.net, replace(card, steps=12_345))
    result = json.loads((path / "eval.json").read_text())
    summary = {"mean": 20.0, "std": 14.14, "ci_low": 10.0, "ci_high": 30.0, "human_normalised": 0.63}
    (path / "eval.json").write_text(json.dumps({**result, **summary, "sha256": sha256(student)}))
    return path


def test_a_run_is_on_the_hub_and_its_card_says_of_what_its_scores_are(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "hub:me/breakout", "--license", "mit", "--yes"]) == 0
    said = capsys.readouterr().out
    assert "student.safetensors" in said
    assert "5 files" in said
    assert "hub:me/breakout, which will be created, public; as me." in said
    assert f"Uploaded: {hub.address}/me/breakout/commit/{'1' * 40}" in said
    files = hub.repos["me/breakout"]
    assert set(files) == {"README.md", "student.safetensors", "config.yaml", "eval.json", "metrics.csv"}
    checksum = hashlib.sha256(files["student.safetensors"]).hexdigest()
    assert checksum == sha256(run / "student.safetensors")
    _, front, text = files["README.md"].decode().split("---\n", 2)
    meta = yaml.safe_load(front)
    assert (meta["library_name"], meta["license"], meta["pipeline_tag"]) == ("kfrl", "mit", "reinforcement-learning")
    (result,) = meta["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == "20.00 +/- 14.14"
    protocol = read_card(run / "student.safetensors")
    assert protocol.steps == 12_345
    for words in (
        "| mean raw score of the student alone | 20.0 |",
        "| 95 % bootstrap interval over its games | 10.0 to 30.0 |",
        "| human-normalised | 63.0 % |",
        "| agent steps | 12,345 |",
        "| protocol | paper, fingerprint ",
        "frame\\_skip 4",
        f"| SHA-256 of student.safetensors | {checksum} |",
        f"| pong | {'b' * 64} |",
        r"| &lt;script&gt;\| |",
        r"**Two \[games\].**",
        "--teachers hub:me/breakout/student.safetensors",
    ):
        assert words in text
    assert b"/home/me" not in files["config.yaml"]
    assert yaml.safe_load(files["config.yaml"])["teachers"] == "own.safetensors,zoo:pong"


def test_a_repository_that_is_there_gets_another_commit_and_a_group_s_may_be_private(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "hub:our-lab/breakout", "--private", "--yes"]) == 0
    assert hub.private["our-lab/breakout"]
    assert "will be created, private" in capsys.readouterr().out
    (run / "curves.png").write_bytes(b"png")
    assert main(["push", str(run), "hub:our-lab/breakout", "--yes"]) == 0
    assert "exists and gets a new commit" in capsys.readouterr().out
    assert hub.repos["our-lab/breakout"]["curves.png"] == b"png"


@pytest.mark.parametrize(("answer", "code", "sent"), [("", 1, False), ("n", 1, False), ("Yes", 0, True)])
def test_it_asks(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, sent: bool) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["push", str(run), "hub:me/breakout"]) == code
    assert bool(hub.repos) is sent


def test_a_dry_run_shows_the_card_and_asks_nobody(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), "hub:me/breakout", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "## Scores" in said
    assert "Nothing was sent. These files would go to hub:me/breakout." in said
    assert not hub.repos


def test_a_classifier_has_a_card_too(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text(dump_config(SupervisedConfig(data="digits", net="mlp-4")))
    net = make_net("mlp-4", (1, 8, 8), 2)
    score = {"accuracy_percent": 75.0, "images": 4, "correct": 3}
    card = classifiers.Card("digits", ("0", "1"), dict(net.arch), (1, 8, 8), (0.5,), (0.5,), evaluation=score)
    classifiers.save_classifier(path / "student.safetensors", net, card)
    assert main(["push", str(path), "hub:me/digits", "--yes"]) == 0
    _, front, text = hub.repos["me/digits"]["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    assert "| errors | 1 of 4 |" in text


def refused(run: Path, capsys: pytest.CaptureFixture[str], place: str = "hub:me/breakout") -> str:
    assert main(["push", str(run), place, "--yes"]) == 2
    return capsys.readouterr().err


def test_who_may_not_push_is_told_why(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "You are me on the Hub and may not push to you. Push to one of: me, our-lab" in refused(
        run, capsys, "hub:you/breakout"
    )
    hub.may_write = False
    assert "Your token may not write to me/breakout" in refused(run, capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "The Hub refuses your token" in refused(run, capsys)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "there is no token: hf auth login, or HF_TOKEN" in refused(run, capsys)
    assert not hub.repos


def test_offline_is_said(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The client waits longer and longer between its tries.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "The Hub cannot be reached. Nothing was uploaded" in refused(run, capsys)


def test_runs_that_cannot_be_pushed(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Expected hub:OWNER/REPO, got 'me/breakout'" in refused(run, capsys, "me/breakout")
    assert main(["push", str(run), "hub:me/breakout"]) == 2
    assert "no terminal to ask on. Give --yes" in capsys.readouterr().err
    agent = load_agent(run / "student.safetensors")
    save_agent(run / "student.safetensors", agent.net, replace(agent.card, steps=1))
    assert "has another" in refused(run, capsys)
    (run / "student.safetensors").unlink()
    assert "has no student yet. Continue the run: kfrl train --resume" in refused(run, capsys)
    assert "is not the folder of a run: it has no config.yaml" in refused(run.parent, capsys)
