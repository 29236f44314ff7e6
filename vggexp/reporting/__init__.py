"""Sets of runs as a table, as means over repeats, and as one HTML page. Needs no torch."""
