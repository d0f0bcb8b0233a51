"""`Observatory`: simulated spectrographs behind the interface of an archive of trained models."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from astropy.table import Table

from lamost_lsf.errors import ModelNotFoundError
from lamost_lsf.models.archive import IPArchive
from lamost_lsf.simulation.ip import SimulatedIP

__all__ = ["Observatory"]

_ARMS = ("blue", "red")


class Observatory(IPArchive):
    """Sixteen simulated spectrographs with two arms each; stands wherever an `IPArchive` does, and holds the truth.

    ``observatory.lsf_for(spectrum)``, ``.lsf(...)`` and ``.profile(...)`` work as an archive's; every season is there.

    Parameters
    ----------
    seed : int
        Another seed is another observatory.
    **options
        Of every `SimulatedIP`: ``fiber_scatter``, ``night_scatter``, ``defective_fiber``, ``epoch``, ``offset``.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.time import Time
    >>> from lamost_lsf.simulation import Observatory
    >>> lsf = Observatory().lsf(spectrograph=3, time=Time("2017-01-10T15:00"), fiber=31)
    >>> lsf.profile([4500, 7500] * u.AA).shape
    (2,)
    """

    def __init__(self, seed: int = 0, **options: Any) -> None:
        self.seed, self.options = int(seed), dict(options)
        self._load = lru_cache(maxsize=32)(self._make)
        self._make(1, "blue")  # bad options are refused here, not at the first use

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load = lru_cache(maxsize=32)(self._make)

    def _make(self, spectrograph: int, arm: str) -> SimulatedIP:
        return SimulatedIP(arm, spectrograph, seed=self.seed, **self.options)

    def __len__(self) -> int:
        return 32

    def __repr__(self) -> str:
        return f"<Observatory of 16 simulated spectrographs, seed {self.seed}>"

    def ip(self, spectrograph: int, arm: str) -> SimulatedIP:
        """The true instrumental profile of one arm of one spectrograph."""
        return self.model(spectrograph=spectrograph, arm=arm)

    def model(self, *, spectrograph: int, arm: str, season: int | None = None) -> SimulatedIP:
        """The same as `ip`, as an archive is asked; a simulated IP holds for every season.

        Raises
        ------
        ModelNotFoundError
            A spectrograph other than 1-16.
        ValueError
            An arm other than "blue" and "red".
        """
        if arm not in _ARMS:
            raise ValueError(f"arm must be 'blue' or 'red', got {arm!r}")
        if spectrograph not in range(1, 17):
            raise ModelNotFoundError(f"no model of spectrograph {spectrograph}; the observatory has 1-16")
        return self._load(int(spectrograph), arm)

    def table(self) -> Table:
        """One row an arm: spectrograph, arm."""
        rows = [(spectrograph, arm) for spectrograph in range(1, 17) for arm in _ARMS]
        return Table(rows=rows, names=("spectrograph", "arm"))

    def gaps(self) -> Table:
        """Nothing is missing: an empty table."""
        return Table(names=("season", "spectrograph", "arm"), dtype=(int, int, "U4"))
