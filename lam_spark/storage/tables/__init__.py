"""Delta tables: what is declared about each, reading and writing them, their logs, publication and maintenance."""
