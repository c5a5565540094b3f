"""Zips that Stable-Baselines3 itself wrote, and its own forward as the oracle."""

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from torch import Tensor

from agents.teachers.foreign import read_foreign
from envs.preprocessing import PRESETS
from kfrl.errors import UserError


class Noise(gym.Env[np.ndarray, int]):
    """Random pictures in the form of four stacked screens."""

    def __init__(self, shape: tuple[int, int, int] = (84, 84, 4)) -> None:
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gym.spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, False, False, {}


def saved(
    path: Path, algorithm: Any, policy: str = "CnnPolicy", env: gym.Env[Any, Any] | None = None, **kw: Any
) -> Any:
    """A model whose outputs differ clearly between observations, saved by the library."""
    if algorithm in (DQN, QRDQN):
        kw["buffer_size"] = 1
    model = algorithm(policy, env or Noise(), seed=3, device="cpu", **kw)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save(path)
    return model


def actor_critic(model: Any, obs: Tensor) -> tuple[Tensor, Tensor]:
    return model.policy.get_distribution(obs).distribution.logits, model.policy.predict_values(obs)[:, 0]


@pytest.mark.parametrize(("algorithm", "method"), [(A2C, "sb3 a2c"), (PPO, "sb3 ppo")])
def test_an_actor_critic_acts_as_in_stable_baselines3(tmp_path: Path, obs: Tensor, algorithm: Any, method: str) -> None:
    model = saved(tmp_path / "agent.zip", algorithm)
    agent = read_foreign(tmp_path / "agent.zip")
    logits, values = agent.net(obs)
    expected_logits, expected_values = actor_critic(model, obs)
    torch.testing.assert_close(logits.log_softmax(1), expected_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-5)
    assert (agent.method, agent.preprocessing, agent.seed) == (method, PRESETS["baselines"], 3)


def test_steps_are_those_that_it_learned_for(tmp_path: Path) -> None:
    A2C("CnnPolicy", Noise(), device="cpu").learn(10).save(tmp_path / "agent.zip")
    assert read_foreign(tmp_path / "agent.zip").steps == 10


def test_a_dqn_gives_q_values(tmp_path: Path, obs: Tensor) -> None:
    model = saved(tmp_path / "agent.zip", DQN)
    agent = read_foreign(tmp_path / "agent.zip")
    expected = model.q_net(obs)
    torch.testing.assert_close(agent.net(obs)[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agent.net(obs)[1], expected.max(1).values, rtol=1e-4, atol=1e-5)
    assert (agent.method, agent.net.arch["head"]) == ("sb3 dqn", "q")


def test_a_qr_dqn_gives_the_mean_of_its_quantiles(tmp_path: Path, obs: Tensor) -> None:
    model = saved(tmp_path / "agent.zip", QRDQN, policy_kwargs={"n_quantiles": 11})
    agent = read_foreign(tmp_path / "agent.zip")
    quantiles = model.policy.quantile_net(obs)
    assert quantiles.shape == (2, 11, 6)
    torch.testing.assert_close(agent.net(obs)[0], quantiles.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agent.net(obs)[1], quantiles.mean(1).max(1).values, rtol=1e-4, atol=1e-5)
    assert (agent.method, agent.net.arch["head"]) == ("sb3 qr-dqn", "q")


def test_pixels_that_were_not_scaled_are_not(tmp_path: Path, obs: Tensor) -> None:
    model = saved(tmp_path / "agent.zip", PPO, policy_kwargs={"normalize_images": False})
    logits, _ = read_foreign(tmp_path / "agent.zip").net(obs)
    expected, _ = actor_critic(model, obs.float())
    torch.testing.assert_close(logits.log_softmax(1), expected, rtol=1e-3, atol=1e-3)


# --- what is refused ----------------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        read_foreign(path)
    assert path.name in str(error.value)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_a_policy_without_convolutions(tmp_path: Path) -> None:
    saved(tmp_path / "mlp.zip", PPO, "MlpPolicy")
    refused(
        tmp_path / "mlp.zip", "without convolutions (MLP?)", "Valid are feed-forward convolutional nets (CnnPolicy)"
    )


def test_a_recurrent_policy(tmp_path: Path) -> None:
    saved(tmp_path / "lstm.zip", RecurrentPPO, "CnnLstmPolicy")
    refused(tmp_path / "lstm.zip", "recurrent policy", "lstm_actor", "Valid are feed-forward")


def test_two_bodies(tmp_path: Path) -> None:
    saved(tmp_path / "two.zip", A2C, policy_kwargs={"share_features_extractor": False})
    refused(tmp_path / "two.zip", "second body", "share_features_extractor=False", "Valid: one body")


def test_an_extractor_of_ones_own(tmp_path: Path) -> None:
    from stable_baselines3.common.torch_layers import NatureCNN

    saved(
        tmp_path / "own.zip",
        PPO,
        policy_kwargs={"features_extractor_class": type("MyCnn", (NatureCNN,), {}), "net_arch": []},
    )
    refused(tmp_path / "own.zip", "custom features extractor", "MyCnn", "Valid: NatureCNN")


def test_layers_after_the_convolutions(tmp_path: Path) -> None:
    saved(tmp_path / "deep.zip", PPO, policy_kwargs={"net_arch": [8]})
    refused(
        tmp_path / "deep.zip", "  mlp_extractor.policy_net.0.weight  8 x 512", "weights: policy.pth", "unzip deep.zip"
    )


@pytest.mark.parametrize(
    ("shape", "words"),
    [((84, 84, 3), "input of 3 channels"), ((96, 96, 4), "for 92 x 92 screens"), ((84, 84, 1), "input of 1 channels")],
)
def test_another_input(tmp_path: Path, shape: tuple[int, int, int], words: str) -> None:
    saved(tmp_path / "other.zip", A2C, env=Noise(shape))
    refused(tmp_path / "other.zip", words, "4 x 84 x 84")


def rewrite(path: Path, **members: bytes | None) -> None:
    """Replace members of a zip; None removes one."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content |= {name.replace("__", "."): data for name, data in members.items() if data is not None}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if members.get(name.replace(".", "__"), b"") is not None:
                archive.writestr(name, data)


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_code_in_its_policy_never_runs(tmp_path: Path) -> None:
    marker, evil = tmp_path / "ran", io.BytesIO()
    saved(tmp_path / "evil.zip", A2C)
    torch.save({"action_net.weight": Evil(marker)}, evil)
    rewrite(tmp_path / "evil.zip", policy__pth=evil.getvalue())
    refused(tmp_path / "evil.zip", "no code in it ran")
    assert not marker.exists()
    torch.load(io.BytesIO(evil.getvalue()), weights_only=False)
    assert marker.exists(), "the file would not have run anything anyway"


def test_code_in_its_settings_never_runs(tmp_path: Path, obs: Tensor) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.zip"
    model = saved(path, A2C)
    evil = base64.b64encode(pickle.dumps(Evil(marker))).decode()
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    data |= {
        name: {":type:": "evil", ":serialized:": evil} for name in ("policy_class", "lr_schedule", "policy_kwargs")
    }
    rewrite(path, data=json.dumps(data).encode(), pytorch_variables__pth=pickle.dumps(Evil(marker)))
    logits, _ = read_foreign(path).net(obs)
    assert not marker.exists()
    torch.testing.assert_close(logits.log_softmax(1), actor_critic(model, obs)[0], rtol=1e-4, atol=1e-5)
    pickle.loads(base64.b64decode(evil))
    assert marker.exists(), "the file would not have run anything anyway"


def test_a_zip_with_no_policy_in_it(tmp_path: Path) -> None:
    saved(tmp_path / "empty.zip", A2C)
    rewrite(tmp_path / "empty.zip", policy__pth=None)
    refused(tmp_path / "empty.zip", "without a policy", "data, pytorch_variables.pth", "policy.pth")


@pytest.mark.parametrize("data", [None, b"", b"[]", b"{", b"\xff"])
def test_settings_that_are_no_settings(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "agent.zip"
    saved(path, A2C)
    rewrite(path, data=data)
    if data in (None, b"[]"):
        assert read_foreign(path).method == "sb3 a2c"
    else:
        refused(path, "damaged")


@pytest.mark.parametrize("space", [None, {}, {"n": "four"}, {"n": "7"}, {"n": "0"}])
def test_quantiles_of_nobody_knows_how_many_actions(tmp_path: Path, space: Any) -> None:
    path = tmp_path / "agent.zip"
    saved(path, QRDQN, policy_kwargs={"n_quantiles": 3})
    rewrite(path, data=json.dumps({"action_space": space}).encode())
    refused(path, "18 quantiles", "action_space.n")


def test_a_truncated_zip(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    saved(path, A2C)
    whole = path.read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "truncated")
    middle = len(whole) // 4
    path.write_bytes(whole[:middle] + b"\0" * 100 + whole[middle + 100 :])
    refused(path, "damaged")
    # The table of contents at its end.
    path.write_bytes(whole.replace(b"PK\x01\x02", b"PK\x07\x07"))
    refused(path, "damaged")
