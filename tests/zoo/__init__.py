"""Tasks with a known answer. `tests/` is on the path (pytest puts the folder of conftest.py there)."""
