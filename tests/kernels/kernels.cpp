// Every kernel of products against naive float64 sums, over awkward shapes, in every schedule of the shim.
#include "harness.h"

namespace {

// y against the sums of w and x in float64; `bound` times norm2(w) * norm2(x) is allowed.
void compare(const Problem &p, const vector<double> &x, const vector<float> &y, double bound, const std::string &what) {
    for (uint32_t v = 0; v < p.is.n; v++)
        for (uint32_t i = 0; i < p.is.rows; i++) {
            double sum = 0, ww = 0, xx = 0;
            for (uint32_t j = 0; j < p.is.cols; j++) {
                const double a = p.w[size_t(i) * p.is.cols + j], b = x[size_t(v) * p.is.cols + j];
                sum += a * b, ww += a * a, xx += b * b;
            }
            const double error = std::fabs(y[size_t(v) * p.is.rows + i] - sum), allowed = bound * std::sqrt(ww) * std::sqrt(xx);
            if (allowed > 0)
                worst = std::max(worst, error / allowed);
            expect(error <= allowed, what + ": row " + std::to_string(i) + " of vector " + std::to_string(v) + " is " +
                                         std::to_string(y[size_t(v) * p.is.rows + i]) + ", expected " + std::to_string(sum));
        }
}

// A kernel, by the vectors and the rows that a warp has at once, and the warps of a block that have rows of their own if none share.
struct Shape {
    uint32_t v, r, warps;
    unsigned threads() const { return warps == 8 ? 256 : 128; }
    unsigned shared() const { return warps == 8 ? 8 * r * v * 4 : 0; }
};
const Shape MMA_8{8, 16, 4}, MMA_64{64, 16, 4};
Shape few(uint32_t v, uint32_t r) { return {v, r, 8}; }

// Makes a matrix one of a launch: where its results go, and its blocks.
unsigned place_in(Matrix &m, const Shape &s, uint32_t split, vector<float> &y) {
    m.y = address(y);
    m.split = split;
    m.blocks = up(m.rows, s.warps / split * s.r);
    return m.blocks;
}

void product(const std::string &kernel, const Problem &p, MatmulArgs a, const Shape &s, const vector<double> &x, double bound) {
    for (uint32_t split = 1; split <= (s.warps == 8 ? 8 : 1); split *= 2) {
        if (p.is.rows > 17 && split > 2)
            break; // many blocks, slow to run, and nothing new
        vector<float> y(size_t(p.is.n) * p.is.rows, NAN_FILL);
        const std::string what = kernel + ", split " + std::to_string(split) + ": " + p.is.name();
        launch(kernel, &a, place_in(a.matrices[0], s, split, y), up(p.is.n, s.v), s.threads(), s.shared(), {bytes(y)}, what);
        compare(p, x, y, bound, what);
        // The last vector alone: the same bits. x is moved by whole vectors.
        if (p.is.n > 1 && split == 2) {
            vector<float> alone(p.is.rows, NAN_FILL);
            MatmulArgs b = a;
            const size_t vectors = p.is.n - 1, values = vectors * p.c.slices;
            b.n = 1;
            b.x += kernel.find("f32") != std::string::npos ? values * 128 : kernel.find("sign") != std::string::npos ? values * 4 : values * 32;
            b.xscales += values * 4;
            b.xsums += values * 4;
            launch(kernel, &b, place_in(b.matrices[0], s, split, alone), 1, s.threads(), s.shared(), {bytes(alone)}, what);
            expect(std::memcmp(alone.data(), y.data() + vectors * p.is.rows, alone.size() * 4) == 0,
                   what + " does not depend on the batch");
        }
    }
    // Beside others: the bits that each gets alone. Their scales, zero points, rows and splits are their own.
    const Case &k = p.is;
    Problem second({k.bits, k.rows + 5, k.cols, k.group, k.n, !k.half, k.bits > 1 && !k.zeros});
    Problem third({k.bits, 1, k.cols, k.group, k.n, k.half, k.zeros});
    Problem *const others[]{&second, &third};
    const uint32_t splits[]{1, s.warps == 8 ? 4u : 1u, s.warps == 8 ? 8u : 1u};
    MatmulArgs both = a;
    vector<vector<float>> alone, beside;
    for (const uint32_t rows : {k.rows, second.is.rows, third.is.rows}) {
        alone.emplace_back(size_t(k.n) * rows, NAN_FILL);
        beside.emplace_back(size_t(k.n) * rows, NAN_FILL);
    }
    unsigned blocks = 0;
    for (size_t i = 0; i < 3; i++) {
        MatmulArgs one = a;
        if (i > 0)
            both.matrices[i] = one.matrices[0] = others[i - 1]->matrix();
        blocks += place_in(both.matrices[i], s, splits[i], beside[i]);
        launch(kernel, &one, place_in(one.matrices[0], s, splits[i], alone[i]), up(k.n, s.v), s.threads(), s.shared(), {bytes(alone[i])}, kernel);
        if (i == 0)
            continue;
        // Two, and then three.
        launch(kernel, &both, blocks, up(k.n, s.v), s.threads(), s.shared(), {bytes(beside[0]), bytes(beside[1]), bytes(beside[2])}, kernel);
        for (size_t j = 0; j <= i; j++) {
            expect(std::memcmp(alone[j].data(), beside[j].data(), alone[j].size() * 4) == 0, kernel + " beside others: " + k.name());
            std::fill(beside[j].begin(), beside[j].end(), NAN_FILL);
        }
    }
}

void test(const Case &k) {
    Problem p(k);
    const size_t slices = size_t(k.n) * p.c.slices;
    const std::string b = "_b" + std::to_string(k.bits);
    ActivationArgs act{};
    act.x = address(p.x);
    act.columns = p.c;
    act.n = k.n;
    const unsigned rows_of_grid = std::min(k.n, 3u); // fewer than n: the kernels stride
    const vector<double> exact(p.x.begin(), p.x.end());

    // float32
    vector<float> spread(slices * 32, NAN_FILL);
    act.out = address(spread);
    launch("spread_activations", &act, up(p.c.slices, 4), rows_of_grid, 128, 0, {bytes(spread)}, k.name());
    MatmulArgs a = p.args();
    a.x = address(spread);
    for (const Shape &f : {few(1, 2), few(4, 1)})
        product("matmul_f32" + b + "_n" + std::to_string(f.v), p, a, f, exact, 1e-5);

    // int8
    const uint32_t block = block_of(p.c);
    vector<int8_t> quantized(slices * 32, 99);
    vector<float> scales(slices, NAN_FILL);
    vector<int32_t> sums(slices, -1);
    vector<uint32_t> bad{0};
    QuantizeArgs quantize{};
    quantize.x = address(p.x);
    quantize.to = quantized_to(p.c, quantized, scales, sums, bad);
    quantize.n = k.n;
    launch("quantize_activations", &quantize, up(p.c.slices, block * 4), rows_of_grid, 128, 0,
           {bytes(quantized), bytes(scales), bytes(sums)}, k.name());
    expect(bad[0] == 0, "finite activations are good: " + k.name());
    vector<double> rounded(p.x.size());
    vector<int32_t> expected_sums(slices, 0);
    for (uint32_t v = 0; v < k.n; v++) {
        vector<float> largest(p.c.slices / block, 0.0f);
        for (uint32_t j = 0; j < k.cols; j++) {
            float &l = largest[place(p.c, j) / 32 / block];
            l = std::max(l, std::fabs(p.x[size_t(v) * k.cols + j]));
        }
        for (uint32_t j = 0; j < k.cols; j++) {
            const size_t at = place(p.c, j), slice = v * size_t(p.c.slices) + at / 32;
            const float scale = largest[at / 32 / block] / 127.0f, value = p.x[size_t(v) * k.cols + j];
            const int code = scale > 0 ? int(std::nearbyint(value / scale)) : 0;
            expect(scales[slice] == scale && quantized[slice * 32 + at % 32] == code,
                   "activation " + std::to_string(j) + " of vector " + std::to_string(v) + ": " + k.name());
            expected_sums[slice] += code;
            rounded[size_t(v) * k.cols + j] = double(scale) * code;
        }
    }
    expect(sums == expected_sums, "sums of activations: " + k.name());
    a.x = address(quantized);
    a.xscales = address(scales);
    a.xsums = address(sums);
    for (const Shape &f : {few(1, 4), few(4, 2)})
        product("matmul_i8" + b + "_n" + std::to_string(f.v), p, a, f, rounded, 1e-5);
    for (const Shape &f : {MMA_8, MMA_64})
        product("matmul_mma" + b + "_n" + std::to_string(f.v), p, a, f, rounded, 1e-5);

    // sign
    if (k.bits != 1)
        return;
    vector<uint32_t> signs(slices, 0xdeadbeef);
    act.out = address(signs);
    launch("sign_activations", &act, up(p.c.slices, 4), rows_of_grid, 128, 0, {bytes(signs)}, k.name());
    vector<double> sign(p.x.size());
    std::transform(p.x.begin(), p.x.end(), sign.begin(), [](float v) { return v >= 0 ? 1.0 : -1.0; });
    a.x = address(signs);
    product("matmul_sign_n1", p, a, few(1, 4), sign, 1e-5);
    product("matmul_sign_n4", p, a, few(4, 2), sign, 1e-5);
}

// What a vector that holds `value` comes to.
void hostile(float value) {
    const Columns c = columns(40, 0);
    vector<float> x(80, 1.0f), scales(8);
    x[77] = value;
    vector<int8_t> codes(256);
    vector<int32_t> sums(8);
    vector<uint32_t> bad{0};
    QuantizeArgs quantize{};
    quantize.x = address(x), quantize.to = quantized_to(c, codes, scales, sums, bad), quantize.n = 2;
    launch("quantize_activations", &quantize, 1, 2, 128, 0, {}, "not finite");
    expect(bad[0] == 1, "an activation that is not finite is reported");

    Problem p({4, 3, 40, 0, 1, false, false});
    p.x[5] = value;
    vector<float> spread(128), y(3);
    ActivationArgs act{};
    act.x = address(p.x), act.out = address(spread), act.columns = c, act.n = 1;
    launch("spread_activations", &act, 1, 1, 128, 0, {}, "not finite");
    MatmulArgs a = p.args();
    a.x = address(spread);
    launch("matmul_f32_b4_n1", &a, place_in(a.matrices[0], few(1, 2), 1, y), 1, 256, 8 * 2 * 4, {}, "not finite");
    for (uint32_t i = 0; i < 3; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < 40; j++)
            sum += p.w[i * 40 + j] * p.x[j];
        expect(std::isnan(sum) ? std::isnan(y[i]) : double(y[i]) == sum, "IEEE: " + std::to_string(y[i]) + ", expected " + std::to_string(sum));
    }
}

// A vector whose products with 32 levels leave the range of float32, though those with the weights do not, among others: they get the
// bits that they get alone.
void large(uint32_t bits) {
    Problem p({bits, 9, 1100, 64, 3, false, bits > 1});
    const float smaller = 1e-30f;
    for (float &scale : p.float_scales)
        scale *= smaller;
    for (uint32_t i = 0; i < p.is.rows; i++)
        for (uint32_t j = 0; j < p.is.cols; j++)
            p.w[size_t(i) * p.is.cols + j] *= smaller;
    vector<float> others;
    for (const bool grown : {false, true}) {
        // Of vector 1, and of its last columns only: what one warp of several meets.
        for (uint32_t j = 900; grown && j < p.is.cols; j++)
            p.x[p.is.cols + j] = std::ldexp(j % 3 == 0 ? -1.0f : 1.9f, 127);
        ActivationArgs act{};
        vector<float> spread(size_t(p.is.n) * p.c.slices * 32, NAN_FILL);
        act.x = address(p.x), act.out = address(spread), act.columns = p.c, act.n = p.is.n;
        launch("spread_activations", &act, up(p.c.slices, 4), p.is.n, 128, 0, {bytes(spread)}, p.is.name());
        MatmulArgs a = p.args();
        a.x = address(spread);
        for (const Shape &f : {few(1, 2), few(4, 1)}) {
            const std::string kernel = "matmul_f32_b" + std::to_string(bits) + "_n" + std::to_string(f.v);
            product(kernel, p, a, f, vector<double>(p.x.begin(), p.x.end()), 1e-5);
            vector<float> y(size_t(p.is.n) * p.is.rows, NAN_FILL);
            launch(kernel, &a, place_in(a.matrices[0], f, 2, y), up(p.is.n, f.v), f.threads(), f.shared(), {bytes(y)}, "large");
            for (uint32_t v = 0; v < p.is.n; v += 2)
                others.insert(others.end(), y.begin() + v * p.is.rows, y.begin() + (v + 1) * p.is.rows);
        }
    }
    const size_t half = others.size() / 2;
    expect(std::equal(others.begin(), others.begin() + std::ptrdiff_t(half), others.begin() + std::ptrdiff_t(half)),
           "a large vector changes no other");
}

// Activations at both ends of the range of float32.
void extremes() {
    const Columns c = columns(32, 32);
    for (const float size : {1e-45f, 1e-43f, 1e-38f, 3e38f}) {
        vector<float> x(32, -size), scales(4);
        vector<int8_t> codes(128, 99);
        vector<int32_t> sums(4);
        vector<uint32_t> bad{0};
        QuantizeArgs quantize{};
        quantize.x = address(x), quantize.to = quantized_to(c, codes, scales, sums, bad), quantize.n = 1;
        launch("quantize_activations", &quantize, 1, 1, 128, 0, {}, "extremes");
        expect(bad[0] == 0 && codes[0] >= -127 && codes[0] <= 0 && sums[0] == 32 * codes[0], "codes stay within 127");
        expect(std::fabs(double(scales[0]) * codes[0] + size) <= size / 254.0 + 1e-43, "the largest activation is kept");
    }
}

// Kernels with bugs; with `only` that one alone, where ThreadSanitizer has to end the program with its report.
void planted([[maybe_unused]] const char *only) {
    struct {
        uint64_t out;
    } args;
    const auto run = [&](const char *name, int schedule, int expected) {
        vector<float> y(64, NAN_FILL);
        args.out = address(y);
        expect(entry(name)(&args, 1, 1, 1, 64, 1, 1, 256, schedule) == expected, std::string(name) + " ends as it should");
        return y;
    };
    const auto wrong = [](const vector<float> &y, float right) { return std::any_of(y.begin(), y.end(), [&](float v) { return !(v == right); }); };
#ifdef SHIM_RACES
    run(only, 0, 0);
    return;
#endif
    std::fprintf(stderr, "one complaint about a thread that waits is wanted: ");
    run("planted_divergence", 0, 2);
    expect(wrong(run("planted_race", 0, 0), 1.0f), "poison shows a missing barrier");
    expect(wrong(run("planted_loop", 3, 0), 3.0f), "the greedy schedule shows a missing barrier in a loop");
    vector<float> y(64);
    args.out = address(y);
    expect(entry("planted_race")(&args, 1, 1, 1, 65, 1, 1, 256, 0) == 1, "a block of part of a warp is refused");
}

} // namespace

int main(int argc, [[maybe_unused]] char **argv) {
#ifdef SHIM_RACES
    if (argc > 1)
        planted(argv[1]);
    const vector<Case> cases{{4, 9, 200, 32, 5, true, true}, {1, 3, 70, 0, 2, false, false}};
#else
    vector<Case> cases;
    for (const uint32_t bits : {1u, 2u, 4u, 8u}) {
        const bool zeros = bits > 1;
        cases.push_back({bits, 1, 1, 0, 1, false, false});
        cases.push_back({bits, 17, 33, 32, 3, true, zeros});
        cases.push_back({bits, 5, 1100, 64, 9, true, zeros});
        cases.push_back({bits, 66, 140, 128, 2, true, false});
        cases.push_back({bits, 7, 259, 40, 5, false, zeros});
        cases.push_back({bits, 3, 131, 8, 4, false, zeros});
        cases.push_back({bits, 2, 4500, 0, 1, true, zeros});
        cases.push_back({bits, 2, 65, 0, 66, false, zeros});
    }
    planted(nullptr);
#endif
    for (size_t i = 0; i < cases.size(); i++) {
        // The small ones in every schedule, the others in one, in turn; with an argument, all in one.
        if (argc == 1 && uint64_t(cases[i].rows) * cases[i].cols * cases[i].n < 2000)
            schedules = EVERY_SCHEDULE;
        else
            schedules = {EVERY_SCHEDULE[i % 4]};
        test(cases[i]);
    }
    for (const float value : {NAN_FILL, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
        hostile(value);
    for (const uint32_t bits : {1u, 2u, 4u, 8u})
        large(bits);
    extremes();
    test_transformer();
    std::printf("kernels: %zu checks, %zu failed; the worst error is %.2f of what is allowed\n", checks, failures, worst);
    return failures == 0 ? 0 : 1;
}
