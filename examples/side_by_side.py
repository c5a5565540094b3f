"""Show the teacher, the linked student and the student alone in the same game: python side_by_side.py RUN OUT.gif.

RUN is the folder of a run of Knowledge Flow whose student is folded. Optional arguments are SEED FIRST LAST: the game's
seed, and the first and last step to show (by default 0, 0 and 900). Every second step is shown.
"""

import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from agents.evaluation.play import Screening, policy_of
from agents.run import reopen
from kfrl.runs.checkpoint import latest_checkpoint

run = reopen(Path(sys.argv[1]))
output = Path(sys.argv[2])
seed, first, last = (int(word) for word in sys.argv[3:6]) if len(sys.argv) > 3 else (0, 0, 900)
method, actions = run.method(), run.spec.actions
net = method.build(run.spec, run.teachers)
latest_checkpoint(run.folder.checkpoints).load_net(net)
teacher = run.teachers[0]
policies = {
    "teacher": policy_of(teacher.net, teacher.card.actions, actions),
    "student with links": lambda obs: net.flow(obs)[0],
    "student alone": lambda obs: net.alone(obs)[0],
}


def titled(title: str, frames: list[np.ndarray]) -> list[np.ndarray]:
    """Every second frame with a title above it; the last frame of a short game is repeated."""
    frames = frames + [frames[-1]] * (last - len(frames))
    bars = [np.pad(frame, ((24, 0), (2, 2), (0, 0))) for frame in frames[first:last:2]]
    for bar in bars:
        cv2.putText(bar, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
    return bars


with torch.no_grad():
    columns = []
    for title, policy in policies.items():
        screening = Screening(policy, run.protocol, seed, max_steps=last)
        columns.append(titled(title, list(islice(screening, last))))
        print(f"{title}: {screening.score:,.0f} points in the shown game")
pictures = [Image.fromarray(np.concatenate(row, axis=1)).quantize(32) for row in zip(*columns, strict=True)]
pictures[0].save(output, save_all=True, append_images=pictures[1:], duration=1000 // 15, loop=0, optimize=True)
print(f"Wrote {output}, {len(pictures)} frames, {output.stat().st_size / 1e6:.1f} MB")
