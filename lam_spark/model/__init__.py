"""Fields to event vectors, a causal transformer over packed segments, and heads. Pure torch, no Spark."""
