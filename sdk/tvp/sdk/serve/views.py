"""Pictures that were seen, so that a second question costs its own tokens only: `Views`."""

from __future__ import annotations

from collections import OrderedDict

from .._view import View

Key = tuple[int, bytes]  # number of the load of a task, and digest of the picture


class Views:
    """The views that were used last, bounded in bytes. Only the thread that computes uses it.

    Args:
        max_bytes: of all views together; a view alone that is larger is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._views: OrderedDict[Key, tuple[View, int]] = OrderedDict()
        self.n_bytes = self.n_hits = self.n_misses = 0

    def __len__(self) -> int:
        return len(self._views)

    def find(self, key: Key) -> View | None:
        """Return a view that is there."""
        found = self._views.get(key)
        if found is None:
            self.n_misses += 1
            return None
        self.n_hits += 1
        self._views.move_to_end(key)
        return found[0]

    def keep(self, key: Key, view: View) -> None:
        """Keep a view, with the size that it has now; a question may have made it larger."""
        self._forget(key)
        size = view.n_bytes
        if size > self.max_bytes:
            return
        self._views[key] = view, size
        self.n_bytes += size
        while self.n_bytes > self.max_bytes:
            self._forget(next(iter(self._views)))

    def drop(self, number: int) -> None:
        """Forget the views of one load of a task."""
        for key in [key for key in self._views if key[0] == number]:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        if key in self._views:
            self.n_bytes -= self._views.pop(key)[1]
