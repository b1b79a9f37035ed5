"""The torture test: processes that add and run jobs while a controller kills, freezes and cuts them off, and checks of
what is left. `python -m tests.torture --help` says how to run it.

Its evidence is outside of the library: a ledger that each process appends to, a table of effects without a constraint,
and a history that triggers write at every change of a lease.
"""
