"""Preprocessing of an agent, from the console's screen to the input of its net.

Scale and frame order are not part of it: they are folded into the first convolution of another program's net.
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
"""Weights of OpenCV's RGB2GRAY."""
_INTERPOLATION = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of the 210 x 160 RGB screen to 84 x 84 gray, and the buttons that are pressed for the agent.

    The default is ale-py's preprocessing without buttons, with which kfrl trains every net.
    """

    luma: tuple[float, float, float] | None = None
    """Weights of R, G and B; None: ale-py's screens, for which crop and resize are not used."""
    crop: tuple[int, int] | None = None
    """(height, top): resize to height x 84, then keep 84 rows from `top` on. None: resize to 84 x 84."""
    resize: Literal["area", "linear"] = "area"
    """OpenCV's interpolation."""
    fire_reset: bool = False
    """Whether FIRE and action 2 are pressed when a game starts and, after a NOOP, when a life was lost; the frame stack
    is then cleared (OpenAI baselines' FireResetEnv and EpisodicLifeEnv)."""

    def with_ale_screens(self) -> Preprocessing:
        """The same buttons with ale-py's screens, which the agent gets as the teacher of a student."""
        return Preprocessing(fire_reset=self.fire_reset)

    def screen(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert an RGB screen (210, 160, 3) to the agent's input (84, 84).

        Raises:
            ValueError: the agent uses ale-py's screens.
        """
        if self.luma is None:
            raise ValueError("Expected luma weights, got None: ale-py makes these screens.")
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
    # muupan/async-rl, which swaps the weights of G and B.
    "async-rl": Preprocessing((0.2126, 0.0722, 0.7152), resize="linear"),
}


def get_preprocessing(name: str) -> Preprocessing:
    """Return the preset with this name.

    Raises:
        UserError: there is no such preset; the message names the nearest one.
    """
    if name not in PRESETS:
        raise unknown("preprocessing", name, PRESETS)
    return PRESETS[name]
