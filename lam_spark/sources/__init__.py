"""Raw inputs: readers of files, Delta tables and databases, schema checks, and the ingestion state."""
