"""Special token ids shared by all categorical fields; ids of values start at `FIRST_VALUE`."""

PADDING, UNKNOWN, MISSING = 0, 1, 2
FIRST_VALUE = 3
