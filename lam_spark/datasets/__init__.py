"""Data sets that ship with the project, and the stage that puts their raw files in place."""
