from __future__ import annotations

import math
import struct
from collections.abc import Callable

import pytest

from edge.bridges.finding import finding_of
from edge.bridges.tags import RESULT_FIELDS, VerdictCode
from edge.events.schema import Event
from edge.inspection.result import Region, Verdict
from tests.edge.events.conftest import fixed_event


@pytest.fixture
def make_event() -> Callable[..., Event]:
    return fixed_event


def test_the_worst_region_has_the_highest_peak_and_its_own_scale(make_event: Callable[..., Event]) -> None:
    large = Region(bbox=(0, 0, 50, 50), area_px=2500, peak=1.0, centroid=(25.0, 25.0), area_mm2=25.0)
    worst = Region(bbox=(0, 0, 10, 10), area_px=100, peak=2.0, centroid=(200.0, 40.0), area_mm2=25.0)
    finding = finding_of(make_event(regions=[large, worst], score=1.25, threshold=0.75))
    assert finding._fields == tuple(name for name in RESULT_FIELDS if name != "part_id")
    assert finding.verdict is VerdictCode.NG
    assert (finding.region_count, finding.score, finding.threshold) == (2, 1.25, 0.75)
    assert (finding.worst_x, finding.worst_y) == (200.0, 40.0)
    # 25 mm² on 100 pixels: half a millimetre each.
    assert (finding.worst_x_mm, finding.worst_y_mm) == (100.0, 20.0)


def test_what_is_not_known_is_minus_one(make_event: Callable[..., Event]) -> None:
    region = Region(bbox=(0, 0, 1, 1), area_px=1, peak=2.0, centroid=(3.0, 4.0))
    finding = finding_of(make_event(regions=[region], threshold=None))
    assert (finding.threshold, finding.worst_x, finding.worst_x_mm, finding.worst_y_mm) == (-1, 3.0, -1, -1)
    finding = finding_of(make_event(regions=[], verdict=Verdict.FAULT, score=None))
    assert (finding.verdict, finding.score, finding.worst_x, finding.region_count) == (VerdictCode.FAULT, -1, -1, 0)


@pytest.mark.parametrize("score", [1e300, -1e300, math.inf, math.nan])
def test_numbers_that_no_plc_can_hold_fit_all_the_same(make_event: Callable[..., Event], score: float) -> None:
    assert math.isfinite(struct.unpack("f", struct.pack("f", finding_of(make_event(score=score)).score))[0])
