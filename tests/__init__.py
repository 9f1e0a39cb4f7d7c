"""Tests, benchmarks and their servers. What they start may keep its bytecode, as installed it does.

Where the environment forbids that, every command of the product would be compiled anew.
"""

import os

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
