"""Play with an exported student, without kfrl and PyTorch: python play_onnx.py exported.onnx [SEED].

Needs `pip install onnxruntime gymnasium ale-py`, and a file of `kfrl export RUN --to onnx`.
"""

import json
import sys

import ale_py
import gymnasium
import numpy as np
import onnxruntime

gymnasium.register_envs(ale_py)
net = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(net.get_modelmeta().custom_metadata_map["kfrl"])
game = gymnasium.make_vec(about["gymnasium"]["id"], num_envs=1, **about["gymnasium"]["kwargs"])
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
chance = np.random.default_rng(seed)
obs, info = game.reset(seed=seed)
recurrent = about.get("state")
state = {"state": np.zeros((1, recurrent["shape"][1]), np.float32)} if recurrent else {}
score, steps, over = 0.0, 0, False
while not over:
    logits, _, *after = net.run(None, {"input": obs, **state})
    action = (logits + chance.gumbel(size=logits.shape)).argmax(1)  # a draw from softmax(logits)
    lives = info["lives"][0]
    obs, reward, terminated, truncated, info = game.step(action)
    if recurrent:
        lost = recurrent["an episode ends with"] == "a life" and info["lives"][0] < lives
        state = {"state": after[0] * np.float32(not lost)}
    score, steps, over = score + float(reward[0]), steps + 1, bool(terminated[0] or truncated[0])
print(f"{about['game']}: {score:,.0f} points in {steps:,} steps")
