"""Random problems of every sort, each result judged from the data: ``python -m tests.fuzz``."""
