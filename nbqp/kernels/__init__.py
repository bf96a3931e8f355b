"""Compiled code: arrays, scalars and named tuples in; no scipy, no exceptions."""
