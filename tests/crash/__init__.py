"""Processes that die, stop and race."""
