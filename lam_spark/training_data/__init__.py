"""Turns sequences and examples into packed blocks, a pinned training snapshot, and batches."""
