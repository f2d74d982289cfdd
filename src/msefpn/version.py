"""The package's version, for every part of it; it needs no installed package."""

__version__ = "0.2.0.dev0"
