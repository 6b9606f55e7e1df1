"""Breaks runs and files on purpose and counts what comes of it: `python -m tests.faults --trials 50 --json FILE`.

A *kill* ends one rank of a training, or a preparation, at a random moment; then the same command goes on, and its
result must be that of the command nothing disturbed. *Damage* changes one file of a checkpoint or a prepared folder;
the command must refuse it by name. A *disk* is full or read-only, or the run's folder goes away; training must say so,
and go on once there is room.
"""
