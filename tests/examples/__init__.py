"""Tests of the examples, with few boards and epochs."""
