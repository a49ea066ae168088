"""Fields to event vectors, a causal transformer over packed windows, and heads. Pure torch, no Spark."""
