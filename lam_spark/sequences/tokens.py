"""Token ids that mean the same in every categorical field; values follow from `FIRST_VALUE`."""

PADDING, UNKNOWN, MISSING = 0, 1, 2
FIRST_VALUE = 3
