"""Tests of the solver: independent oracles, generators of problems, hand-solved cases."""
