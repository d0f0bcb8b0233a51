"""A plug-in whose dependency is not installed."""

import a_dependency_that_is_not_installed  # noqa: F401
