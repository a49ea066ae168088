"""How good the ranking is: held-out lift and calibration beside a rule and chance."""
