"""Raw rows to 4W1H events: mapping by SQL, rules, quarantine, deduplication, assignment of ids to customers."""
