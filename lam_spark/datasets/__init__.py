"""Data sets that ship with the package, and the stage that writes their raw files."""
