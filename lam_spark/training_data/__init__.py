"""Sequences and examples to packed blocks, a pinned training snapshot, and batches."""
