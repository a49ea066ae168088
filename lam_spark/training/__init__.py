"""Training of the model: losses, the training loop, process groups, checkpoints, experiment tracking and cost.

`stage.py` is the only module here that reads tables; `process_group.py` is the only one that knows Horovod.
"""
