"""Raw inputs to typed rows: readers, the identity map, and the data sets that ship with the project."""
