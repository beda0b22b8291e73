"""Sweeps: many trainings over the values of some keys of a configuration, run by Ray Tune.

`space` says which values, `trial` is one training run, `tuning` hands them to Ray, `standings` says what came of them.
Only `trial` and `tuning` need Ray.
"""
