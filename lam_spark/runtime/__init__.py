"""How any stage runs: context, runner, session, lock, signals, log, audit; knows no stage."""
