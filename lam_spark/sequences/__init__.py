"""Events to one ordered sequence a customer, and point-in-time examples."""
