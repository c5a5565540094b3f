"""Evaluation and training protocols: named presets, frozen and hashed.

A score is meaningless without the rules of play, so every checkpoint and every score contains them. Two scores are
comparable only if the fingerprints of their rules are equal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from envs.games import find_game
from kfrl.errors import UserError, unknown


@dataclass(frozen=True)
class Protocol:
    """The rules of play. Frames are emulator frames; one agent step is `frame_skip` of them."""

    name: str
    game: str
    """The game's name (`envs.games.Game`), e.g. `ms_pacman`, with the flavour if not the default: `freeway:m1d0`."""
    sticky: float = 0.0
    """Probability that the emulator repeats the previous action instead of the chosen one."""
    full_action_set: bool = False
    """Whether all 18 joystick actions are used instead of the game's minimal set."""
    fire_reset: bool = False
    """Whether games start, and continue after a lost life, as in Stable-Baselines3's AtariWrapper. In a game with FIRE,
    FIRE and the next action are pressed for one agent step each, after a lost life with a NOOP before them; the frame
    stack is cleared; a game starts with 1 to `noop_max` no-op frames. The learner does not see these steps; their
    points count for the score."""
    episodic_life: bool = True
    """Whether a lost life ends the learner's episode; the score is always that of the whole game."""
    clip_rewards: bool = True
    """Whether the learner's rewards are clipped to [-1, 1]; the score is never clipped."""
    noop_max: int = 30
    """A game starts with 0 to `noop_max` no-op frames."""
    frame_skip: int = 4
    max_pool: bool = True
    """Whether an observation is the maximum over the last two skipped frames."""
    screen_size: int = 84
    frame_stack: int = 4
    max_frames: int = 108_000
    """A game is truncated after this number of frames (108,000 are 30 minutes). Scores under different caps are not
    comparable, because longer games give more points."""

    def __post_init__(self) -> None:
        """Refuse invalid rules."""
        if not 0.0 <= self.sticky < 1.0:
            raise UserError(f"Expected a sticky probability in [0, 1), got {self.sticky}.")
        for field in ("frame_skip", "screen_size", "frame_stack", "max_frames"):
            if getattr(self, field) < 1:
                raise UserError(f"Expected protocol field {field} of at least 1, got {getattr(self, field)}.")
        # 0 and 0.0 are equal as rules, but not as JSON; other tools write 0.0 as 0.
        object.__setattr__(self, "sticky", float(self.sticky))

    def _digest(self, **without: str) -> str:
        rules = asdict(self) | without
        if self.fire_reset:
            # In earlier versions fire_reset pressed FIRE only for one frame at the start of a game.
            rules["fire_reset"] = "every life"
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a hash of all rules and the game."""
        return self._digest(name="")

    @property
    def rules(self) -> str:
        """The fingerprint without the game; it must be equal to show scores of two games in one table."""
        return self._digest(name="", game="")

    def to_dict(self) -> dict[str, Any]:
        """All rules and the fingerprint, for the header of a file."""
        return asdict(self) | {"fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Protocol:
        """Rebuild a protocol from the result of `to_dict`.

        Raises:
            UserError: the fields are unknown, or the fingerprint does not match the rules.
        """
        fields = {key: value for key, value in saved.items() if key != "fingerprint"}
        try:
            protocol = cls(**fields)
        except TypeError as error:
            raise UserError(f"Not a protocol block of this version of kfrl: {error}.") from None
        if saved.get("fingerprint", protocol.fingerprint) != protocol.fingerprint:
            raise UserError(
                f"The protocol block has the fingerprint {saved['fingerprint']}, "
                f"but its rules give {protocol.fingerprint}: "
                "it was edited by hand or written by another version."
            )
        return protocol


_PRESETS: dict[str, dict[str, Any]] = {
    # Mnih et al. 2016 (A3C) and most later papers: games of at most half an hour.
    "paper": {},
    # Mnih et al. 2015 (Nature), whose evaluation Knowledge Flow uses (section 4.1): at most five minutes.
    "nature": {"max_frames": 18_000},
    # Machado et al. 2018, "Revisiting the Arcade Learning Environment".
    "machado": {"sticky": 0.25, "full_action_set": True, "episodic_life": False, "noop_max": 0},
    # Stable-Baselines3's AtariWrapper.
    "sb3": {"fire_reset": True},
}


def get_protocol(name: str, game: str) -> Protocol:
    """Return preset `name` for `game`.

    Raises:
        UserError: the preset or the game is unknown; the message names the nearest one.
    """
    if name not in _PRESETS:
        raise unknown("protocol", name, _PRESETS)
    return replace(Protocol(name=name, game=find_game(game).name), **_PRESETS[name])
