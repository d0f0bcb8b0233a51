"""How far a long command has come: bars on a terminal, a line now and then in a log; always on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from lamost_lsf.cli._common import note

__all__ = ["Items", "Training"]

_EVERY_S = 10.0


def _bar_class() -> Any:
    """A bar of tqdm, where it is installed and somebody is looking."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


class Items:
    """Progress through a known number of things.

    Parameters
    ----------
    total : int
    what : str
        Name of the things, plural.
    """

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.done = total, what, 0
        tqdm = _bar_class()
        self._bar = tqdm(total=total, unit=f" {what}", file=sys.stderr, leave=False) if tqdm else None
        self._last = time.monotonic()

    def __enter__(self) -> Items:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()
        elif time.monotonic() - self._last > _EVERY_S:
            self._last = time.monotonic()
            note(f"{self.done} of {self.total} {self.what}")

    def say(self, message: str) -> None:
        """A line that does not tear the bar."""
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            note(message)


class Training:
    """The ``progress`` of `lamost_lsf.training.train`: one bar a phase."""

    def __init__(self) -> None:
        self._tqdm = _bar_class()
        self._bar: Any = None
        self._phase: tuple[str, str] | None = None
        self._last = 0.0

    def __call__(self, phase: str, step: int, steps: int, loss: float, *, name: str = "") -> None:
        """Told at every validation."""
        label = f"{name} {phase}".strip()
        new = (name, phase) != self._phase
        self._phase = (name, phase)
        if self._tqdm is None:
            if new or step >= steps or time.monotonic() - self._last > _EVERY_S:
                self._last = time.monotonic()
                note(f"{label}: step {step} of {steps}, validation loss {loss:.5g}")
            return
        if new:
            self.close()
            self._bar = self._tqdm(total=steps, desc=label, unit=" steps", file=sys.stderr, leave=False)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(f"validation loss {loss:.5g}")  # shown at once: validations are rare

    def named(self, name: str, phase: str, step: int, steps: int, loss: float) -> None:
        """The same, of one set among many."""
        self(phase, step, steps, loss, name=name)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
