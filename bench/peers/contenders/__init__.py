"""What is compared: each module here drives one library, and runs in a process of its own.

A module offers `variants(bits)`, the names of what it can do at a width (an ImportError, from here or from the module
itself, means that it is not installed), and `Contender`:

    Contender(variant, bits, rows, cols, group, rotate)   quantises one Gaussian matrix, rows x cols, float32
    .configure(n, threads, place) -> dict                 bytes of one matrix; relative error; copies in rotation
    .turn(seconds) -> [seconds of each product]           at least one product
"""

import math

import numpy as np

# Products with so many vectors are bound by arithmetic, and a second each where a peer is slow: a few copies do.
MANY = 64
COPIES_FOR_MANY = 8

# Vectors of which the error is computed.
CHECKED = 4


def matrix(rows, cols):
    """The Gaussian matrix that everyone quantises: (rows, cols) float32."""
    return np.random.default_rng(1).standard_normal((rows, cols), dtype=np.float32)


def vectors(n, cols):
    """Gaussian activations: (n, cols) float32."""
    return np.random.default_rng(2).standard_normal((n, cols), dtype=np.float32)


def relative_error(y, w, x):
    """|y - x w'| / |x w'| over the first vectors; y is (n, rows)."""
    want = x[:CHECKED].astype(np.float64) @ w.T.astype(np.float64)
    return float(np.linalg.norm(y[:CHECKED] - want) / np.linalg.norm(want))


def copies(bytes_of_one, rotate, place, n):
    """How many copies of a matrix a rotation takes."""
    if place == "cache":
        return 1
    wanted = max(2, math.ceil(rotate / bytes_of_one))
    return min(wanted, COPIES_FOR_MANY) if n >= MANY else wanted
