"""Learning rates from step to step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError


def rates(steps_per_epoch: int, **values: object) -> list[float]:
    """Of every step of a run."""
    config = TrainConfig(**values)  # type: ignore[arg-type]
    steps = range(config.epochs * steps_per_epoch)
    return [config.rate(1 + step // steps_per_epoch, step, steps_per_epoch) for step in steps]


def test_milestones_change_the_rate_from_epoch_to_epoch() -> None:
    assert rates(2, lr=1.0, epochs=3, lr_milestones=(1, 2), lr_decay=0.5) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_a_triangle_rises_to_its_peak_and_falls_to_nothing() -> None:
    found = rates(5, lr=1.0, epochs=2, lr_schedule="triangle", lr_peak=0.2)
    assert found == pytest.approx([1 / 2, 1, *(eighths / 8 for eighths in (8, 7, 6, 5, 4, 3, 2, 1))])


def test_a_cosine_falls_along_half_a_wave() -> None:
    found = rates(2, lr=2.0, epochs=2, lr_schedule="cosine")
    assert found == pytest.approx([1 + math.cos(math.pi * quarters / 4) for quarters in range(4)])


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(["cosine", "triangle"]), st.integers(1, 5), st.integers(1, 9), st.floats(0, 1, exclude_max=True)
)
def test_every_rate_is_above_nothing_and_at_most_the_given_one(
    schedule: str, epochs: int, steps: int, peak: float
) -> None:
    found = rates(steps, lr=0.5, epochs=epochs, lr_schedule=schedule, lr_peak=peak)
    assert all(0 < rate <= 0.5 for rate in found) and max(found) == 0.5
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1]) and found[top:] == sorted(found[top:], reverse=True)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lr_schedule": "linear"}, "--lr-schedule is 'linear'; choose one of milestones, cosine, triangle"),
        (
            {"lr_schedule": "cosine", "lr_milestones": (2, 3)},
            "--lr-milestones 2 3 needs --lr-schedule milestones, not",
        ),
        ({"lr_peak": 0.2}, "--lr-peak 0.2 needs --lr-schedule cosine or triangle, not milestones"),
        ({"lr_schedule": "triangle", "lr_peak": 1.0}, "--lr-peak is 1; give 0 up to below 1"),
        ({"nesterov": True, "optimizer": "sgd"}, "--nesterov needs a --momentum above 0; give one, such as 0.9"),
    ],
)
def test_what_does_not_fit_is_told(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**values)  # type: ignore[arg-type]
    assert str(caught.value).startswith(told)
