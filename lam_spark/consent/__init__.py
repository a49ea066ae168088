"""The consent ledger and eligibility, the only door to customer data."""
