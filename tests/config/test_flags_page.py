"""Flags, their help and their page come from the fields of the configuration."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.config.catalog import LOSSES
from pipeline.config.cli import _parser
from pipeline.config.fields import Bounds, described
from pipeline.config.flags_page import flags_page
from pipeline.config.method import Method
from pipeline.config.schema import SECTIONS, TrainConfig
from pipeline.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "flags.md"


def test_the_page_is_what_is_printed() -> None:
    assert PAGE.read_text() == flags_page(), "print it anew: python -m pipeline.config.flags_page > docs/flags.md"


def test_the_page_and_the_help_name_every_flag_once() -> None:
    flags = [option for action in _parser()._actions for option in action.option_strings if option.startswith("--")]
    assert [flags_page().count(f"| `{flag} ") + flags_page().count(f"| `{flag}`") for flag in flags[1:]] == [1] * (
        len(flags) - 1
    )
    assert all(flag in _parser().format_help() for flag in flags)


@pytest.mark.parametrize("config", SECTIONS.values())
def test_every_field_is_a_flag_with_a_meaning(config: type) -> None:
    assert [f.name for f, told in described(config) if told.text] == [f.name for f in fields(config)]


def test_defaults_told_in_words_are_the_real_ones() -> None:
    shown = {f.name: told.shown for f, told in described(TrainConfig)}
    assert shown["epochs"].split()[-2] == str(TrainConfig().epochs)
    assert shown["beta"] == f"{LOSSES['predsim'].beta}; {LOSSES['predsim-bio'].beta} for predsim-bio"
    muon = TrainConfig(optimizer="muon").momentum
    assert shown["momentum"] == f"{TrainConfig().momentum:g}; {muon} of muon"
    told = {"lr": "0.0005", "timeout": "60", "deterministic": "", "loss": "predsim", "queue_depth": "4"}
    assert {name: shown[name] for name in told} == told


def test_the_longer_words_are_for_the_page_alone() -> None:
    split = next(told for f, told in described(TrainConfig) if f.name == "split")
    assert split.doc in flags_page()
    assert split.help == "blocks of each stage: auto, or counts such as 3,2,2,1 (auto)"


@pytest.mark.parametrize("value", [True, "1", 0, 9, 1.5, None])
def test_whole_numbers_out_of_bounds_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"--queue-depth is .*; give a whole number at least 1 and at most 8"):
        Bounds(1, 8).check("queue_depth", value)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), True])
def test_numbers_out_of_bounds_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"--lr is .*; give a finite number above 0"):
        Bounds(0.0, open_low=True).check("lr", value)
    Bounds(0.0, open_low=True).check("lr", 1)


def test_a_method_needs_no_placement() -> None:
    assert Method(loss="predsim-bio").beta == 0.01
