// What the tests of the kernels share: launches in every schedule of the shim, what is expected, and quantised matrices packed as
// kernels/README.md says, apart from the library's packing.
#ifndef APL_FFI_TESTS_KERNELS_HARNESS_H
#define APL_FFI_TESTS_KERNELS_HARNESS_H

#include "../../kernels/args.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

using Entry = int (*)(const void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, int);
using std::vector;

inline const vector<int> EVERY_SCHEDULE{0, 1, 2, 3};
inline vector<int> schedules = EVERY_SCHEDULE; // of the case at hand
constexpr float NAN_FILL = std::numeric_limits<float>::quiet_NaN();

inline size_t checks = 0, failures = 0;
inline double worst = 0; // error as a share of what is allowed

inline void expect(bool good, const std::string &what) {
    checks++;
    if (!good && ++failures <= 20)
        std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

inline Entry entry(const std::string &name) {
    void *found = dlsym(RTLD_DEFAULT, (name + "_host").c_str());
    if (found == nullptr) {
        std::fprintf(stderr, "no kernel %s\n", name.c_str());
        std::exit(2);
    }
    return reinterpret_cast<Entry>(found);
}

template <typename T> uint64_t address(vector<T> &v) { return reinterpret_cast<uint64_t>(v.data()); }

inline uint32_t up(uint64_t a, uint64_t b) { return uint32_t((a + b - 1) / b); }

inline Columns columns(uint32_t cols, uint32_t group) {
    Columns c{};
    c.cols = cols;
    c.group = group ? group : std::max(cols, 1u);
    c.groups = std::max(1u, up(cols, c.group));
    c.per_group = up(c.group, 32);
    c.slices = up((c.groups - 1) * c.per_group + up(cols - (c.groups - 1) * c.group, 32), 4) * 4;
    return c;
}

// Where column j of the matrix lies: its slice times 32, and its place there.
inline size_t place(const Columns &c, uint32_t j) { return size_t(j / c.group) * c.per_group * 32 + j % c.group; }

// Slices under one activation scale.
inline uint32_t block_of(const Columns &c) { return c.group == 64 ? 2 : c.group == 128 ? 4 : 1; }

inline Quantized quantized_to(const Columns &c, vector<int8_t> &codes, vector<float> &scales, vector<int32_t> &sums, vector<uint32_t> &bad) {
    return {address(codes), address(scales), address(sums), address(bad), c, block_of(c)};
}

struct Case {
    uint32_t bits, rows, cols, group, n;
    bool half, zeros;
    std::string name() const {
        return std::to_string(bits) + " bits, " + std::to_string(rows) + " x " + std::to_string(cols) + ", group " +
               std::to_string(group) + ", n " + std::to_string(n) + (half ? ", f16" : "") + (zeros ? ", zero points" : "");
    }
};

struct Problem {
    Case is;
    Columns c;
    vector<double> w; // (rows, cols), dequantised
    vector<uint32_t> codes;
    vector<uint16_t> half_scales;
    vector<float> float_scales;
    vector<uint8_t> zeros;
    vector<float> x; // (n, cols)

    explicit Problem(const Case &k) : is(k), c(columns(k.cols, k.group)) {
        std::mt19937 dice(k.bits * 7919 + k.rows * 104729 + k.cols * 31 + k.group * 17 + k.n);
        std::normal_distribution<float> normal;
        w.resize(size_t(k.rows) * k.cols);
        codes.resize(size_t(k.rows) * c.slices * k.bits);
        vector<double> scales;
        for (size_t i = 0; i < size_t(k.rows) * c.groups; i++) {
            const uint16_t half = uint16_t((dice() % 2 << 15) | ((8 + dice() % 12) << 10) | dice() % 1024);
            half_scales.push_back(half);
            scales.push_back(std::ldexp(1024 + (half & 1023), (half >> 10 & 31) - 25) * (half >> 15 ? -1 : 1));
            if (!k.half)
                scales.back() = float(scales.back() * 1.1);
            float_scales.push_back(float(scales.back()));
            zeros.push_back(uint8_t(dice() % (1u << k.bits)));
        }
        for (uint32_t i = 0; i < k.rows; i++)
            for (uint32_t j = 0; j < k.cols; j++) {
                const uint32_t code = dice() % (1u << k.bits);
                const size_t at = size_t(i) * c.groups + j / c.group;
                const int zero = k.zeros ? zeros[at] : 1 << (k.bits - 1);
                w[size_t(i) * k.cols + j] = scales[at] * (k.bits == 1 ? 2 * int(code) - 1 : int(code) - zero);
                const size_t p = place(c, j), d = p % 32 % (32 / k.bits);
                codes[(size_t(i) * c.slices + p / 32) * k.bits + p % 32 / (32 / k.bits)] |=
                    code << (8 * (d % 4) + k.bits * (d / 4));
            }
        for (size_t i = 0; i < size_t(k.n) * k.cols; i++)
            x.push_back(normal(dice) * (i % 7 == 0 ? 100.0f : 1.0f));
    }

    Matrix matrix() {
        Matrix m{};
        m.codes = address(codes);
        m.scales = is.half ? address(half_scales) : address(float_scales);
        m.zeros = is.zeros ? address(zeros) : 0;
        m.rows = is.rows;
        m.half_scales = is.half;
        return m;
    }

    // For products of this matrix alone.
    MatmulArgs args() {
        MatmulArgs a{};
        a.columns = c;
        a.n = is.n;
        a.matrices[0] = matrix();
        return a;
    }
};

// Launches once a schedule; what comes out must be the same to the bit.
inline void launch(const std::string &kernel, const void *args, unsigned gx, unsigned gy, unsigned block, unsigned shared,
            const vector<std::function<vector<uint8_t>()>> &outputs, const std::string &what) {
    vector<vector<uint8_t>> first;
    for (const int schedule : schedules) {
        expect(entry(kernel)(args, gx, gy, 1, block, 1, 1, shared, schedule) == 0, kernel + " launches: " + what);
        for (size_t i = 0; i < outputs.size(); i++) {
            if (schedule == schedules[0])
                first.push_back(outputs[i]());
            else
                expect(first[i] == outputs[i](), kernel + " does not depend on the schedule: " + what);
        }
    }
}

template <typename T> std::function<vector<uint8_t>()> bytes(const vector<T> &v) {
    return [&v] {
        const auto *p = reinterpret_cast<const uint8_t *>(v.data());
        return vector<uint8_t>(p, p + v.size() * sizeof(T));
    };
}

// The kernels of transformer.cu and attention.cu.
void test_transformer();

#endif
