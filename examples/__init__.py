"""Examples: layers that learn by solving quadratic programs."""
