"""A script without a main guard: it ends the process that imports it."""

import sys

sys.exit("this script takes two arguments")
