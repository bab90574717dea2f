"""NumPy's float32 product, which is OpenBLAS in the wheels: what a quantised product competes with."""

import itertools
import time

import numpy as np
import threadpoolctl

from . import copies, matrix, relative_error, vectors


def variants(bits):
    return ["float32"]


class Contender:
    def __init__(self, variant, bits, rows, cols, group, rotate):
        self.w = matrix(rows, cols)
        self.rotate = rotate
        self.all = [self.w]

    def configure(self, n, threads, place):
        self.limits = threadpoolctl.threadpool_limits(threads)
        count = copies(self.w.nbytes, self.rotate, place, n)
        while len(self.all) < count:
            self.all.append(self.w.copy())
        self.x = vectors(n, self.w.shape[1])
        self.y = np.empty((n, self.w.shape[0]), np.float32)
        self.rotation = itertools.cycle(self.all[:count])
        self.product(self.w)
        return {"bytes": self.w.nbytes, "error": relative_error(self.y, self.w, self.x), "copies": count}

    def product(self, w):
        if len(self.x) == 1:
            np.dot(w, self.x[0], out=self.y[0])
        else:
            np.dot(self.x, w.T, out=self.y)

    def turn(self, seconds):
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            w = next(self.rotation)
            start = time.perf_counter()
            self.product(w)
            times.append(time.perf_counter() - start)
        return times
