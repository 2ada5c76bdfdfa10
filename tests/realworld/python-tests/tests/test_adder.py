import sys
import unittest

sys.path.insert(0, "src")
from adder import add


class Adding(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(2, 3), 5)
