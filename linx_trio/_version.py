"""The version, written once: the build reads it from here, and so does the agent's compilation."""

__version__ = "0.1.0"
