"""The time that a decision was told is one that it was somewhere on earth, when the decision was entered."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from privet.privacy.audit.fact_checks import wrong_time
from privet.privacy.audit.facts import Facts
from privet.privacy.policy.moments import moment_of

ENTERED = "2026-11-22T00:30:00.000+00:00"  # a Sunday


def told(date: int, weekday: str, hour: int, minute: int) -> Facts:
    time = {"date": date, "weekday": weekday, "hour": hour, "minute": minute}
    return {"principal": {}, "resource": {}, "context": {"time": time}}


@given(
    moment=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
    zone=st.sampled_from(
        ["UTC", "Europe/Zurich", "Asia/Kathmandu", "Pacific/Kiritimati", "Etc/GMT+12", "Asia/Kolkata"]
    ),
    lasted=st.integers(0, 600),
)
def test_time_of_any_zone_is_that_of_the_entry(moment: datetime, zone: str, lasted: int) -> None:
    entered = (moment + timedelta(seconds=lasted)).isoformat(timespec="milliseconds")
    facts: Facts = {"principal": {}, "resource": {}, "context": {"time": moment_of(moment, ZoneInfo(zone))}}
    assert list(wrong_time(facts, entered)) == []


@pytest.mark.parametrize(
    "time",
    [
        (20261123, "monday", 12, 0),
        (20261122, "sunday", 14, 45),
        (20261121, "saturday", 12, 15),
        (20261120, "friday", 23, 45),
        (20261122, "sunday", 1, 33),
        (20261122, "sunday", 2, 3),
    ],
)
def test_an_hour_that_it_was_nowhere(time: tuple[int, str, int, int]) -> None:
    (found,) = wrong_time(told(*time), ENTERED)
    assert "which it was in no zone" in found


def test_an_hour_that_is_none() -> None:
    assert list(wrong_time(told(20261122, "sunday", 24, 0), ENTERED)) == ["hour 24, minute 0"]
