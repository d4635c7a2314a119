"""A moment as a policy sees it: date, weekday and time of day in the party's own zone."""

from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from ..errors import UsageError

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def moment_of(now: datetime, zone: tzinfo | None) -> Mapping[str, Any]:
    """The `Moment` of the schema. `zone`: None for the machine's own.

    >>> from datetime import UTC
    >>> moment_of(datetime(2027, 6, 30, 22, 30, tzinfo=UTC), ZoneInfo("Europe/Zurich"))
    {'date': 20270701, 'weekday': 'thursday', 'hour': 0, 'minute': 30}
    """
    here = now.astimezone(zone)
    return {
        "date": int(f"{here:%Y%m%d}"),
        "weekday": _WEEKDAYS[here.weekday()],
        "hour": here.hour,
        "minute": here.minute,
    }


def zone_of(name: str | None) -> tzinfo | None:
    """The zone of that name; None, the machine's own, where none is given. Raises UsageError for an unknown one."""
    try:
        return ZoneInfo(name) if name else None
    except (OSError, ValueError, KeyError):  # a name that is unknown is a KeyError
        raise UsageError(f"time zone {name!r} is not known", "give one such as Europe/Zurich") from None
