"""LAMOST's instrumental profile: learn it, convolve with it, measure consistent radial velocities."""

__all__ = ["__version__"]

__version__ = "0.1.0.dev0"
