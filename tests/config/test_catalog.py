"""What a loss name says is read once, in a table."""

from __future__ import annotations

import pytest

from pipeline.config.catalog import LOSSES, LossSpec


def test_the_names_are_the_papers_in_the_order_that_help_shows() -> None:
    assert list(LOSSES) == [
        *("glob", "pred", "sim", "predsim", "pred-bio", "sim-bio", "predsim-bio"),
        *("glob+pred", "glob+sim", "glob+predsim"),
    ]
    assert all(name == spec.name for name, spec in LOSSES.items())


@pytest.mark.parametrize("spec", LOSSES.values(), ids=lambda spec: spec.name)
def test_a_name_and_its_parts_agree(spec: LossSpec) -> None:
    assert spec.prediction == ("pred" in spec.name)
    assert spec.similarity == ("sim" in spec.name)
    assert spec.bio == spec.name.endswith("-bio")
    assert spec.backpropagates == spec.name.startswith("glob")
    assert spec.local == (spec.name != "glob")
    assert spec.nonlinearity == ("leaky_relu" if "sim" in spec.name else "relu")


def test_a_loss_in_blocks_that_learn_alone_has_the_same_parts() -> None:
    isolated = {name: spec.isolated.name for name, spec in LOSSES.items() if spec.isolated != spec}
    assert isolated == {"glob+pred": "pred", "glob+sim": "sim", "glob+predsim": "predsim"}


def test_the_output_layer_is_scaled_in_predsim_alone_and_never_to_nothing() -> None:
    scaled = {name for name, spec in LOSSES.items() if spec.output_scale(0.75) == 0.25}
    assert scaled == {"predsim", "predsim-bio", "glob+predsim"}
    assert LOSSES["predsim"].output_scale(1.0) == 1.0


def test_only_losses_with_a_layer_before_the_similarity_matrix_offer_a_choice_of_it() -> None:
    assert {name for name, spec in LOSSES.items() if spec.similarity_head} == {
        *("sim", "predsim", "glob+sim", "glob+predsim")
    }
