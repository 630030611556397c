"""Fuzzing of everything that reads bytes from outside: `python -m tests.security.fuzz --help`.

`target.py` says what a target is, `wire.py`, `documents.py` and `stored.py` hold them, `mutation.py` makes inputs
without any extra package (for the default tests), `worker.py` runs one target under atheris, `__main__.py` is the
command.
"""
