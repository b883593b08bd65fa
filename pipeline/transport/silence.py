"""How long something has given no sign, as seen by one who looks often."""

from __future__ import annotations

import time

__all__ = ["Silence"]

_MOST_S = 1.0


class Silence:
    """Seconds in which a sign has stood still.

    Only what passes from one look to the next counts, and no more of it than a second: a pause of whoever looks, such
    as of the whole machine, is not the silence of the other.
    """

    def __init__(self) -> None:
        self._sign: object = None
        self._looked: float | None = None
        self._seconds = 0.0

    def look(self, sign: object) -> float:
        """The seconds for which this has been the sign; 0 at the first look and after a change."""
        now = time.monotonic()
        passed_s = 0.0 if self._looked is None else min(now - self._looked, _MOST_S)
        self._seconds = self._seconds + passed_s if sign == self._sign else 0.0
        self._sign, self._looked = sign, now
        return self._seconds
