"""How fast the queue is, beside its peers: `python -m benchmarks --help`.

`plan.py` says which runs there are; `rounds.py` does them round by round, so that what the machine does meanwhile falls
on all alike, each in a fresh process (`run.py`, `workloads.py`, `measure.py`) on a fresh database; `targets.py` judges
the medians, and `report.py` and `charts.py` show them. The queues are in `peers/`. `soak.py` is a program of its own: a
steady load for a long time.
"""
