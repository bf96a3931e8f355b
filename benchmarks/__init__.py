"""Benchmarks against peers, on one thread: `python -m benchmarks.layers --help`."""

import os

# Read once, when the libraries load, hence before any of their imports.
for _name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
