"""Ranked lists that people act on."""
