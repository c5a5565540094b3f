"""Evaluation and training protocols: named presets, frozen and hashed.

A score means nothing without the rules that it was played under, so the rules travel with every checkpoint and
every score, and two scores are comparable only when their fingerprints agree.
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
    """The name of `envs.games.Game`, e.g. `ms_pacman`, with the flavour where it is not the default: `freeway:m1d0`."""
    sticky: float = 0.0
    """Probability that the emulator repeats the previous action instead of the chosen one."""
    full_action_set: bool = False
    """All 18 joystick actions instead of the game's minimal set."""
    fire_reset: bool = False
    """A game starts, and goes on after a lost life, as in Stable-Baselines3's AtariWrapper: in a game with the button,
    FIRE and the action after it are pressed for one agent step each, a NOOP before them after a lost life; the frame
    stack begins anew; a start has 1 to `noop_max` no-op frames. The learner sees none of those steps; their points
    count."""
    episodic_life: bool = True
    """A lost life ends the episode for the learner. Never for the score."""
    clip_rewards: bool = True
    """The learner sees rewards clipped to [-1, 1]. The score never does."""
    noop_max: int = 30
    """A game starts with 0 to this many no-op frames."""
    frame_skip: int = 4
    max_pool: bool = True
    """An observation is the maximum over the last two skipped frames."""
    screen_size: int = 84
    frame_stack: int = 4
    max_frames: int = 108_000
    """A game is truncated after this many frames (108,000 are 30 minutes). Scores under different caps are not
    compared: the longer game collects more points."""

    def __post_init__(self) -> None:
        """Refuse rules that no preset could mean."""
        if not 0.0 <= self.sticky < 1.0:
            raise UserError(f"Expected a sticky probability in [0, 1), got {self.sticky}.")
        for field in ("frame_skip", "screen_size", "frame_stack", "max_frames"):
            if getattr(self, field) < 1:
                raise UserError(f"Expected protocol field {field} of at least 1, got {getattr(self, field)}.")
        # 0 and 0.0 are equal rules, but not equal JSON: other tools write 0.0 as 0.
        object.__setattr__(self, "sticky", float(self.sticky))

    def _digest(self, **without: str) -> str:
        rules = asdict(self) | without
        if self.fire_reset:
            # In earlier versions fire_reset pressed FIRE for one frame at the start of a game: scores differ.
            rules["fire_reset"] = "every life"
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over every rule and the game."""
        return self._digest(name="")

    @property
    def rules(self) -> str:
        """The fingerprint without the game: what must agree before two games' scores share a table."""
        return self._digest(name="", game="")

    def to_dict(self) -> dict[str, Any]:
        """Every rule, and the fingerprint, for a file's header."""
        return asdict(self) | {"fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Protocol:
        """Rebuild a protocol from `to_dict`; a fingerprint that no longer matches is an error."""
        fields = {key: value for key, value in saved.items() if key != "fingerprint"}
        try:
            protocol = cls(**fields)
        except TypeError as error:
            raise UserError(f"Not a protocol block of this version of kfrl: {error}.") from None
        if saved.get("fingerprint", protocol.fingerprint) != protocol.fingerprint:
            raise UserError(
                f"The protocol block says fingerprint {saved['fingerprint']}, "
                f"but its rules give {protocol.fingerprint}: "
                "it was edited by hand or written by another version."
            )
        return protocol


_PRESETS: dict[str, dict[str, Any]] = {
    # Mnih et al. 2016 (A3C), and most that came after it: half an hour a game.
    "paper": {},
    # Mnih et al. 2015 (Nature), whose evaluation Knowledge Flow follows (section 4.1): five minutes a game.
    "nature": {"max_frames": 18_000},
    # Machado et al. 2018, "Revisiting the Arcade Learning Environment".
    "machado": {"sticky": 0.25, "full_action_set": True, "episodic_life": False, "noop_max": 0},
    # Stable-Baselines3's AtariWrapper.
    "sb3": {"fire_reset": True},
}


def preset_names() -> tuple[str, ...]:
    """The names that `--protocol` takes."""
    return tuple(_PRESETS)


def get_protocol(name: str, game: str) -> Protocol:
    """Return preset `name` for `game`.

    Raises:
        UserError: unknown preset or game; the message names the nearest one.
    """
    if name not in _PRESETS:
        raise unknown("protocol", name, _PRESETS)
    return replace(Protocol(name=name, game=find_game(game).name), **_PRESETS[name])
