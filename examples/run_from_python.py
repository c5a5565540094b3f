"""Start a run from Python: the settings of `kfrl train` as plain values, the result as an object.

python examples/run_from_python.py
"""

from __future__ import annotations

import sys

import agents

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000

result = agents.train(
    {
        "game": "Pong",
        "teachers": "zoo:pong",
        "method": "fine-tune",
        "steps": STEPS,
        "workers": 2,
        "curve_points": 2,
        "curve_episodes": 1,
        "eval_episodes": 1,
    }
)

print(f"folder:     {result.folder}")
print(f"student:    {sum(p.numel() for p in result.student.parameters()):,} parameters, without its teacher")
print(f"scores:     {result.evaluation['scores']}")
print(f"continue:   agents.resume({str(result.folder)!r})")
