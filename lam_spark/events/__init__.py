"""Raw rows to 4W1H events: mapping by SQL, quality rules, quarantine, exact deduplication."""
