"""Many trainings as one: what they are, who does them, and what comes out as tables and figures. See benchmark.py."""
