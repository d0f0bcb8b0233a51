"""Profiles on disk: a folder for each season, spectrograph and arm, with one immutable file for each append."""

from lamost_lsf.store.catalogue import DuplicateExposureError, MixedStoreError
from lamost_lsf.store.profile_store import ProfileStore

__all__ = ["DuplicateExposureError", "MixedStoreError", "ProfileStore"]
