"""What an agent's own code does between the console and its net: part of the agent, not of who calls it.

Scale and frame order need no place here: they are folded into the first convolution when a foreign file is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kfrl.errors import unknown

SCREEN = 84
REC_601 = (0.299, 0.587, 0.114)
"""OpenCV's RGB2GRAY."""
_INTERPOLATION = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}


@dataclass(frozen=True)
class Preprocessing:
    """How the 210 x 160 RGB screen becomes 84 x 84 gray, and which buttons are pressed for the agent.

    The default is ale-py's own observations, which every net trained by kfrl sees, with no button pressed.
    """

    luma: tuple[float, float, float] | None = None
    """Weights of R, G and B; None keeps ale-py's own pictures, and then neither crop nor resize means anything."""
    crop: tuple[int, int] | None = None
    """(height, top): resize to height x 84, keep 84 rows from `top` on. None resizes to 84 x 84."""
    resize: Literal["area", "linear"] = "area"
    """OpenCV's interpolation."""
    fire_reset: bool = False
    """FIRE and action 2 are pressed when a game starts, NOOP before them after a lost life, and the frame stack starts
    anew (OpenAI baselines' FireResetEnv and EpisodicLifeEnv)."""

    def with_ale_screens(self) -> Preprocessing:
        """The same buttons on ale-py's own pictures: what the agent sees as a student's teacher."""
        return Preprocessing(fire_reset=self.fire_reset)

    def screen(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One RGB screen (210, 160, 3) as the agent's own picture (84, 84).

        Raises:
            ValueError: the agent sees ale-py's own pictures.
        """
        if self.luma is None:
            raise ValueError("Expected luma weights, got None: ale-py makes these pictures.")
        if self.luma == REC_601:
            gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        else:
            gray = (rgb @ np.array(self.luma)).astype(np.uint8)
        height, top = self.crop or (SCREEN, 0)
        resized = cv2.resize(gray, (SCREEN, height), interpolation=_INTERPOLATION[self.resize])
        return resized[top : top + SCREEN].astype(np.uint8)


ALE = Preprocessing()
PRESETS: dict[str, Preprocessing] = {
    "ale": ALE,
    # OpenAI baselines' wrap_deepmind, and with it Stable-Baselines3, CleanRL and the ikostrikov family.
    "baselines": Preprocessing(REC_601, fire_reset=True),
    # muupan/async-rl, whose weights of G and B are swapped.
    "async-rl": Preprocessing((0.2126, 0.0722, 0.7152), resize="linear"),
}


def get_preprocessing(name: str) -> Preprocessing:
    """Return the preset of that name.

    Raises:
        UserError: no such preset; the message names the nearest one.
    """
    if name not in PRESETS:
        raise unknown("preprocessing", name, PRESETS)
    return PRESETS[name]
