"""Fault drills on real processes: what README and docs/reliability.md promise, tried.

`python -m tests.drills` runs the long form and prints the table; tests/test_drills.py runs the
quick form of each. A drill is a function of a folder and `long`; it raises AssertionError where a
promise is broken and returns what it saw.
"""
