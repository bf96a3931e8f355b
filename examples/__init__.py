"""Examples: layers that learn by solving quadratic programs."""

import os

# TensorFlow looks for a GPU when it is imported, and greets those who have none with errors.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
