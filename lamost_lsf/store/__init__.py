"""Profiles on disk: one folder a season, spectrograph and arm, with one immutable file an append."""

from lamost_lsf.store.profile_store import DuplicateExposureError, MixedStoreError, ProfileStore

__all__ = ["DuplicateExposureError", "MixedStoreError", "ProfileStore"]
