"""Batch prediction: a predictor without Spark, the pandas UDF around it, and the stages `score` and `embed`."""
