#! /usr/bin/env python3

# C++ examples that test.py runs, to see that they build and run:
#
#     (example_name, do_run, do_valgrind_run)
#
cpp_examples = [
    ("ub-incast-example", "True", "True"),
    ("ub-incast-example --sources=32 --buffer=4160", "True", "False"),
]

# Python examples that test.py runs: (example_name, do_run). Python users of this module start
# from the package `ubfabric`, whose tests run its scripts.
python_examples = []
