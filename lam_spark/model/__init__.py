"""Event embeddings, a causal transformer over packed windows, and prediction heads. Pure PyTorch, no Spark."""
