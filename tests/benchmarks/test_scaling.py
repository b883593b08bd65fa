"""The scaling benchmark: exponents of synthetic times are found, and steps train."""

from __future__ import annotations

import math

import pytest

from benchmarks.experiments.scaling import METHODS, Extent, Method, Point, fit_power, measure, prepare, size
from benchmarks.harness.crew import Member


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(exponent: float) -> None:
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    found, deviation = fit_power(sizes, [0.3 * size**exponent for size in sizes])
    assert math.isclose(found, exponent) and deviation < 1e-9


def test_the_smaller_half_is_left_out_in_any_order() -> None:
    # A constant cost spoils the small sizes only.
    sizes = [32.0, 1.0, 16.0, 2.0, 8.0, 4.0]
    found, deviation = fit_power(sizes, [0.5 * size if size > 4 else 7.0 for size in sizes])
    assert math.isclose(found, 1.0) and deviation < 1e-9


def test_three_points_are_fitted_at_least_and_the_deviation_is_relative() -> None:
    # In logarithms to base 2: (0, 0), (1, 1 + d), (2, 2). The line of slope 1 lies d / 3 above the outer points.
    d = math.log2(1.2)
    found, deviation = fit_power([1.0, 2.0, 4.0], [1.0, 2.0 ** (1 + d), 4.0])
    assert math.isclose(found, 1.0)
    assert math.isclose(deviation, 1.2 ** (2 / 3) - 1)


def test_sizes_are_taken_along_the_axis() -> None:
    point = Point(blocks=3, width=0.5, batch=16, stages=2)
    assert [size(axis, point) for axis in ("blocks", "width", "batch", "stages")] == [3, 0.5, 16, 2]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
@pytest.mark.parametrize("point", [Point(width=1 / 16, batch=4), Point(blocks=2, batch=4)], ids=["vgg8b", "stack"])
def test_every_method_trains_both_networks(method: Method, point: Point) -> None:
    train = prepare(method, point)
    train(1)
    train(2)  # the same network again


def test_a_stage_for_every_block_trains_too() -> None:
    prepare(Method("predsim"), Point(blocks=2, batch=4, stages=3))(2)


def test_the_measuring_process_times_all_points_in_every_round() -> None:
    points = [Point(blocks=1, batch=4, stages=stages) for stages in (1, 2)]
    found = measure(Member(0, 1, 1), "stages", Extent({"stages": points}, repetitions=5, repetition_s=0.0))
    assert {point for _, point in found} == set(points)
    assert {method for method, _ in found} == {method for method in METHODS if method.loss != "glob"}
    assert all(len(times.step) == 5 and min(times.step) > 0 and times.setup > 0 for times in found.values())
