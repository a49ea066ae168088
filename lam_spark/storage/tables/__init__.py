"""Delta tables: declarations, reading and writing, transaction logs, publication and maintenance."""
