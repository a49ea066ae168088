"""Quality of the model on the test period: lift, calibration and intervals, compared with a baseline."""
