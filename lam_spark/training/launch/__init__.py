"""How the processes of a training start: `launchers` (on the driver) and `worker` (in each training process)."""
