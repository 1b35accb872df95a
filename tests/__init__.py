"""All tests. `make test` runs them in three parts, one after the other.

1. files and app need no engine. Three workers share the files of tests.
2. engine and platforms need an engine. Four workers share the files. Each worker has one stack: see
   engine/conftest.py.
3. Tests with the mark `timed` measure time or load, or need a network that does not change. They
   run alone.

In the first two parts, the processors are busy. So a test waits for a state with `until`, and
asserts no short time. docs/promises.md names the test of each promise.
"""
