"""The parts of `scripts/reference.py`: one module for each folder of fixtures."""
