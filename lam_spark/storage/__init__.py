"""Files, times, small DataFrame helpers and Delta tables; knows no stage and no configuration."""
