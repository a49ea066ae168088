"""Batch prediction: a pure torch predictor and the Spark job around it."""
