"""Instruments as data files: arms, fibres, lines, windows. A new spectrograph is one more TOML file, not code."""

from lamost_lsf.instruments.instrument import Instrument, Quality
from lamost_lsf.instruments.registry import ENVIRONMENT, get_instrument, list_instruments

__all__ = ["ENVIRONMENT", "Instrument", "Quality", "get_instrument", "list_instruments"]
