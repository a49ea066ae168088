"""The objective, the loop, and the ranks. `distributed` is the only module that knows Horovod."""
