"""Tests of nbqp, the layer and the examples."""
