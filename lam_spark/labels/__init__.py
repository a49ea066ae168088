"""Point-in-time examples: queries of customers, the labels that followed them, and the baseline's scores."""
