"""Objects that travel to worker processes without what belongs to a single process: open files, locks, caches."""

import abc
from typing import Any


class PerProcess(abc.ABC):
    """A base whose pickled copies start anew what `_fresh` names; subclasses call `_forget` when they are made."""

    @abc.abstractmethod
    def _fresh(self) -> dict[str, Any]:
        """The attributes that stay behind, each with the value that a copy begins with."""

    def _forget(self) -> None:
        self.__dict__.update(self._fresh())

    def __getstate__(self) -> dict[str, Any]:
        behind = self._fresh()
        return {name: value for name, value in self.__dict__.items() if name not in behind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
