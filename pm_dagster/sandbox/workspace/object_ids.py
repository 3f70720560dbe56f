"""Which id each file and folder of the workspace has, and since when.

Put here: giving, finding and forgetting ids. Keep out: files, and locking: ``files.py`` calls this under its lock.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from pm_dagster.sandbox.workspace.memory import FIRST_ID
from pm_dagster.sandbox.workspace.store import StateFile
from pm_dagster.sandbox.workspace.workspace_path import is_within


class ObjectIds:
    """The id of each place, and since when it has it; a place that is deleted and made again gets a new one."""

    def __init__(self, file: StateFile, clock: Callable[[], float]) -> None:
        self._file, self._clock = file, clock
        self._known: dict[str, tuple[int, float]] = {}
        # Even, where jobs and runs have odd ones: no two things of a workspace share an id.
        highest = FIRST_ID - 1
        for record in file.load():
            self._known.update({place: (number, made) for place, (number, made) in record.get("objects", {}).items()})
            for place in record.get("gone", []):
                self._known.pop(place, None)
            numbers = [number for number, _ in record.get("objects", {}).values()]
            highest = max([highest, record.get("highest", 0), *numbers])
        self._numbers = itertools.count(highest + 2, 2)
        file.replace([{"objects": self._known, "highest": highest}])

    def of(self, place: str) -> tuple[int, float]:
        """The id and the time it was given; a place that came into being without us gets its id now."""
        return self._known.get(place) or self.renew(place)

    def renew(self, place: str) -> tuple[int, float]:
        """Give the place an id that none had before."""
        self._known[place] = next(self._numbers), self._clock()
        self._file.append([{"objects": {place: self._known[place]}}])
        return self._known[place]

    def place_of(self, object_id: int) -> str | None:
        """The place with this id."""
        return next((place for place, (number, _) in self._known.items() if number == object_id), None)

    def drop(self, folder: str) -> None:
        """Forget the place and all below it."""
        gone = [place for place in self._known if is_within(place, folder)]
        for place in gone:
            del self._known[place]
        self._file.append([{"gone": gone}])

    def clear(self) -> None:
        """Forget every place; ids are not given again."""
        self._known.clear()
        self._file.replace([{"highest": next(self._numbers)}])
