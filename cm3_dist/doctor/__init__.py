"""`python -m cm3_dist.doctor`: checks that this machine has what a run needs, and names the command that fixes it.

Apart from `probes`, which runs in processes of its own, this package imports the standard library only: it has to work
where importing any other package fails.
"""
