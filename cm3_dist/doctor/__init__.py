"""`python -m cm3_dist.doctor`: does this machine have what a run needs, and if not, which command mends it.

Apart from `probes`, which runs in processes of its own, this package imports the standard library only: it has to speak
where an import of the others fails.
"""
