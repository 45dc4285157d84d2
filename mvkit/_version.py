"""The version, which files note."""

__version__ = "0.1.0"
