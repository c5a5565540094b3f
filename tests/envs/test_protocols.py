from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from envs.protocols import _PRESETS, Protocol, get_protocol
from kfrl.errors import UserError

PAPER = get_protocol("paper", "Seaquest")
OTHER_RULES: dict[str, Any] = {
    "sticky": 0.25,
    "full_action_set": True,
    "fire_reset": True,
    "episodic_life": False,
    "clip_rewards": False,
    "noop_max": 0,
    "frame_skip": 1,
    "max_pool": False,
    "screen_size": 96,
    "frame_stack": 1,
    "max_frames": 18_000,
}


def test_the_table_of_rules_is_complete() -> None:
    assert set(OTHER_RULES) == {field.name for field in fields(Protocol)} - {"name", "game"}


@pytest.mark.parametrize("rule", OTHER_RULES)
def test_every_rule_changes_the_fingerprint(rule: str) -> None:
    other = replace(PAPER, **{rule: OTHER_RULES[rule]})
    assert other.fingerprint != PAPER.fingerprint
    assert other.rules != PAPER.rules


def test_the_presets_name_is_not_a_rule() -> None:
    renamed = replace(PAPER, name="mine")
    assert renamed.fingerprint == PAPER.fingerprint
    assert renamed.rules == PAPER.rules


def test_the_game_is_in_the_fingerprint_but_not_in_the_rules() -> None:
    other = get_protocol("paper", "Alien")
    assert other.fingerprint != PAPER.fingerprint
    assert other.rules == PAPER.rules


@pytest.mark.parametrize(
    ("preset", "fingerprint"),
    [("paper", "8c1834b99f5f"), ("nature", "df3aba6dc6f8"), ("machado", "57f226068904"), ("sb3", "e746b4f08308")],
)
def test_a_preset_never_changes_silently(preset: str, fingerprint: str) -> None:
    """Files in the world carry these: a change here makes their scores incomparable with new ones."""
    assert get_protocol(preset, "Seaquest").fingerprint == fingerprint


@pytest.mark.parametrize("preset", _PRESETS)
def test_the_block_of_a_file_gives_the_protocol_back(preset: str) -> None:
    protocol = get_protocol(preset, "ms_pacman")
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


def test_a_zero_written_without_its_point_is_the_same_rule() -> None:
    block = PAPER.to_dict()
    assert json.dumps(block["sticky"]) == "0.0"
    assert Protocol.from_dict(block | {"sticky": 0}).fingerprint == PAPER.fingerprint


@pytest.mark.parametrize("rule", OTHER_RULES)
def test_a_tampered_block_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match=f"fingerprint {PAPER.fingerprint}"):
        Protocol.from_dict(PAPER.to_dict() | {rule: OTHER_RULES[rule]})


@pytest.mark.parametrize("change", [{"sticki": 0.0}, {"sticky": "much"}, {"frame_skip": None}])
def test_a_block_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Not a protocol block"):
        Protocol.from_dict(PAPER.to_dict() | change)


def test_a_block_without_its_game_is_refused() -> None:
    with pytest.raises(UserError, match="Not a protocol block"):
        Protocol.from_dict({"name": "paper"})


@pytest.mark.parametrize("change", [{"sticky": 1.0}, {"sticky": -0.1}, {"frame_skip": 0}, {"max_frames": 0}])
def test_senseless_rules_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"got {next(iter(change.values()))}"):
        replace(PAPER, **change)


def test_a_block_with_the_old_meaning_of_fire_reset_is_refused() -> None:
    old = get_protocol("sb3", "Seaquest").to_dict() | {"fingerprint": "ea5b2582b5c3"}
    with pytest.raises(UserError, match="written by another version"):
        Protocol.from_dict(old)


def test_each_frame_cap_has_a_preset_and_nothing_else_differs() -> None:
    nature = get_protocol("nature", "Seaquest")
    assert (PAPER.max_frames, nature.max_frames) == (60 * 60 * 30, 60 * 60 * 5)
    assert replace(nature, name="paper", max_frames=PAPER.max_frames) == PAPER
    assert nature.rules != PAPER.rules


def test_an_unknown_preset_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'machado'"):
        get_protocol("machodo", "Seaquest")


def test_machados_rules() -> None:
    protocol = get_protocol("machado", "Seaquest")
    assert (protocol.sticky, protocol.full_action_set, protocol.episodic_life) == (0.25, True, False)


def test_the_default_flavour_keeps_the_fingerprint_and_another_has_its_own() -> None:
    default = get_protocol("paper", "Freeway")
    assert get_protocol("paper", "freeway:m0d0") == default
    other = get_protocol("paper", "freeway:m1d0")
    assert other.fingerprint not in (default.fingerprint, get_protocol("paper", "freeway:m1d1").fingerprint)
    assert other.rules == default.rules
    assert Protocol.from_dict(json.loads(json.dumps(other.to_dict()))) == other
