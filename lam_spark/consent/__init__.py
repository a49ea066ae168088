"""The consent ledger and eligibility: the only door to customer data.

Only this package reads the table `consent`; a test enforces it.
"""
