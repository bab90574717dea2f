// What lies between the products of a transformer, kernel by kernel, against the equations in float64.
#include "harness.h"

namespace {

std::mt19937 dice(7);

// Normally distributed, every 11th ten times as large.
vector<float> random(size_t count) {
    std::normal_distribution<float> normal;
    vector<float> v(count);
    for (size_t i = 0; i < count; i++)
        v[i] = normal(dice) * (i % 11 == 3 ? 10.0f : 1.0f);
    return v;
}

double widened(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
    return h >> 15 ? -size : size;
}

// The error as a share of what is allowed is kept, as for the products.
void near(double found, double expected, double allowed, const std::string &what) {
    const double error = std::fabs(found - expected);
    if (allowed > 0)
        worst = std::max(worst, error / allowed);
    expect(error <= allowed, what + " is " + std::to_string(found) + ", expected " + std::to_string(expected));
}

// A case in every schedule where it is small, else in one of them, in turn.
void some_schedules(size_t work) {
    static size_t turn = 0;
    schedules = work < 4000 ? EVERY_SCHEDULE : vector<int>{EVERY_SCHEDULE[turn++ % 4]};
}

void embed(const Case &k, float factor) {
    some_schedules(size_t(k.cols) * 3);
    Problem p(k);
    vector<uint32_t> ids{k.rows - 1, 0, k.rows + 5}; // the last is no token: the last row stands for it
    vector<float> rows(3 * size_t(k.cols), NAN_FILL);
    EmbedArgs a{};
    a.codes = address(p.codes), a.scales = k.half ? address(p.half_scales) : address(p.float_scales);
    a.zeros = k.zeros ? address(p.zeros) : 0, a.ids = address(ids), a.out = address(rows);
    a.columns = p.c, a.n = 3, a.bits = k.bits, a.half_scales = k.half, a.factor = factor, a.rows = k.rows;
    launch("embed_rows", &a, up(k.cols, 128), 2, 128, 0, {bytes(rows)}, k.name());
    for (size_t t = 0; t < 3; t++)
        for (uint32_t j = 0; j < k.cols; j++)
            expect(rows[t * k.cols + j] == float(p.w[size_t(std::min(ids[t], k.rows - 1)) * k.cols + j]) * factor,
                   "column " + std::to_string(j) + " of a row of the embedding: " + k.name());
}

void angles(uint32_t pairs, uint32_t n, uint32_t first) {
    some_schedules(size_t(pairs) * n);
    vector<double> frequencies;
    for (uint32_t i = 0; i < pairs; i++)
        frequencies.push_back(std::pow(10000.0, -double(i) / pairs) / 6.283185307179586);
    vector<uint32_t> position{first};
    vector<float> found(size_t(n) * pairs * 2, NAN_FILL);
    AngleArgs a{};
    a.frequencies = address(frequencies), a.position = address(position), a.out = address(found);
    a.amplitude = 1.25, a.pairs = pairs, a.n = n;
    launch("rotary_angles", &a, up(uint64_t(n) * pairs, 128), 1, 128, 0, {bytes(found)}, "angles");
    for (size_t i = 0; i < size_t(n) * pairs; i++) {
        const double angle = (first + double(i / pairs)) * std::pow(10000.0, -double(i % pairs) / pairs);
        near(found[2 * i], 1.25 * std::cos(angle), 2e-7, "a cosine at " + std::to_string(angle));
        near(found[2 * i + 1], 1.25 * std::sin(angle), 2e-7, "a sine at " + std::to_string(angle));
    }
}

// What a kernel quantises as it makes it: the bits that come of its floats (n, width), in groups of every kind.
void quantized_in_passing(const vector<float> &floats, uint32_t width, uint32_t n, const std::string &what,
                          const std::function<void(const Quantized &, const vector<std::function<vector<uint8_t>()>> &)> &run,
                          uint32_t whole = 0) {
    for (const uint32_t group : {0u, 32u, 40u, 64u, 128u}) {
        const Columns c = columns(width, group);
        // What is under one scale lies within so many columns.
        if (whole != 0 && ((c.groups > 1 && group % 32 != 0) || whole % (32 * block_of(c)) != 0))
            continue;
        const size_t slices = size_t(n) * c.slices;
        struct {
            vector<int8_t> codes;
            vector<float> scales;
            vector<int32_t> sums;
            vector<uint32_t> bad{0};
        } made[2];
        for (auto &m : made)
            m.codes.assign(slices * 32, 99), m.scales.assign(slices, NAN_FILL), m.sums.assign(slices, -1);
        vector<float> x = floats;
        QuantizeArgs q{};
        q.x = address(x), q.to = quantized_to(c, made[0].codes, made[0].scales, made[0].sums, made[0].bad), q.n = n;
        launch("quantize_activations", &q, up(c.slices, 4 * block_of(c)), n, 128, 0, {}, what);
        run(quantized_to(c, made[1].codes, made[1].scales, made[1].sums, made[1].bad),
            {bytes(made[1].codes), bytes(made[1].scales), bytes(made[1].sums)});
        const bool good = std::all_of(floats.begin(), floats.end(), [](float v) { return std::isfinite(v); });
        expect(made[1].bad[0] == (good ? 0 : 1) && made[0].bad == made[1].bad, "whether all are finite: " + what);
        const bool same = std::memcmp(made[0].scales.data(), made[1].scales.data(), slices * 4) == 0;
        expect(same && made[0].codes == made[1].codes && made[0].sums == made[1].sums, "quantised in passing, group " + std::to_string(group) + ": " + what);
    }
}

// Which of the optional parts are there.
void add_norm(uint32_t width, uint32_t n, bool y, bool bias, bool inner, bool outer) {
    some_schedules(size_t(width) * n * 8);
    const std::string what = "norm of " + std::to_string(width) + (y ? ", added" : "") + (bias ? ", bias" : "") + (inner ? ", inner" : "");
    vector<float> x = random(size_t(width) * n), added = random(x.size()), b = random(width), wi = random(width), wo = random(width);
    vector<float> sum(x.size(), NAN_FILL), result(x.size(), NAN_FILL);
    NormArgs a{};
    a.x = address(x), a.y = y ? address(added) : 0, a.bias = bias ? address(b) : 0, a.inner = inner ? address(wi) : 0;
    a.sum = address(sum), a.outer = outer ? address(wo) : 0, a.out = address(result);
    a.width = width, a.n = n, a.eps = 1e-5f;
    launch("add_norm", &a, n, 1, 256, 64, {bytes(sum), bytes(result)}, what);
    for (uint32_t t = 0; t < n; t++) {
        vector<double> s(width), d(width);
        double squares = 0;
        for (uint32_t i = 0; i < width; i++) {
            d[i] = double(added[t * width + i]) + (bias ? b[i] : 0.0f);
            squares += d[i] * d[i];
        }
        const double f = inner ? 1 / std::sqrt(squares / width + 1e-5) : 1;
        squares = 0;
        for (uint32_t i = 0; i < width; i++) {
            s[i] = x[t * width + i] + (y ? d[i] * f * (inner ? wi[i] : 1.0f) : 0);
            squares += s[i] * s[i];
            if (y)
                near(sum[t * width + i], s[i], 1e-5 * (1 + std::fabs(s[i])), "the sum: " + what);
            else
                expect(std::isnan(sum[t * width + i]), "nothing added, nothing written: " + what);
        }
        for (uint32_t i = 0; i < width; i++) {
            const double expected = s[i] / std::sqrt(squares / width + 1e-5) * wo[i];
            if (outer)
                near(result[t * width + i], expected, 1e-5 * (std::fabs(expected) + std::fabs(wo[i])), what);
            else
                expect(std::isnan(result[t * width + i]), "no norm, nothing written: " + what);
        }
    }
    if (!outer)
        return;
    const vector<float> floats = result, sums = sum;
    quantized_in_passing(floats, width, n, what, [&](const Quantized &to, vector<std::function<vector<uint8_t>()>> outputs) {
        NormArgs b = a;
        b.out = 0, b.quantized = to;
        outputs.push_back(bytes(sum));
        launch("add_norm", &b, n, 1, 256, 64, outputs, what);
        expect(std::memcmp(sum.data(), sums.data(), sum.size() * 4) == 0, "the sum is the same: " + what);
    });
}

struct Heads {
    uint32_t heads, kv_heads, head_dim, slots, n, first;
    bool bias, norm, neighbours, half;
    std::string name() const {
        return std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim) + ", " +
               std::to_string(n) + " tokens at " + std::to_string(first) + (bias ? ", bias" : "") + (norm ? ", norm" : "") +
               (neighbours ? ", neighbours" : "") + (half ? ", f16" : "");
    }
};

void place_heads(const Heads &k) {
    const size_t d = k.head_dim, padded = (d + 3) / 4 * 4;
    some_schedules(k.n * (k.heads + 2 * k.kv_heads) * 32);
    vector<float> q = random(k.n * k.heads * d), keys = random(k.n * k.kv_heads * d), values = random(k.n * k.kv_heads * d);
    values[0] = 1e6f, values[1] = 3e-7f; // beyond float16, and among its subnormals
    vector<float> qb = random(k.heads * d), kb = random(k.kv_heads * d), vb = random(k.kv_heads * d), qn = random(d), kn = random(d);
    vector<float> turns = random(k.n * d), placed(q.size(), NAN_FILL);
    vector<uint32_t> position{k.first};
    const size_t room = k.kv_heads * k.slots * padded;
    vector<float> wide[2]{vector<float>(room, NAN_FILL), vector<float>(room, NAN_FILL)};
    vector<uint16_t> narrow[2]{vector<uint16_t>(room, 0x7fff), vector<uint16_t>(room, 0x7fff)};
    HeadArgs a{};
    a.q = address(q), a.k = address(keys), a.v = address(values);
    if (k.bias)
        a.q_bias = address(qb), a.k_bias = address(kb), a.v_bias = address(vb);
    if (k.norm)
        a.q_norm = address(qn), a.k_norm = address(kn);
    a.angles = address(turns), a.position = address(position), a.out = address(placed);
    a.keys = k.half ? address(narrow[0]) : address(wide[0]), a.values = k.half ? address(narrow[1]) : address(wide[1]);
    a.heads = k.heads, a.kv_heads = k.kv_heads, a.head_dim = k.head_dim, a.slots = k.slots, a.n = k.n;
    a.neighbours = k.neighbours, a.half_cache = k.half, a.eps = 1e-6f, a.query_scale = 0.25f;
    launch("place_heads", &a, up(k.heads + 2 * k.kv_heads, 4), k.n, 128, 0,
           {bytes(placed), bytes(wide[0]), bytes(wide[1]), bytes(narrow[0]), bytes(narrow[1])}, k.name());

    const auto head = [&](const vector<float> &from, const vector<float> &bias, const float *weights, bool turned, uint32_t t, size_t count, size_t h) {
        vector<double> v(d);
        double squares = 0;
        for (size_t i = 0; i < d; i++) {
            v[i] = double(from[(t * count + h) * d + i]) + (k.bias ? bias[h * d + i] : 0.0f);
            squares += v[i] * v[i];
        }
        if (weights)
            for (size_t i = 0; i < d; i++)
                v[i] *= weights[i] / std::sqrt(squares / double(d) + 1e-6);
        if (turned)
            for (size_t i = 0; i < d / 2; i++) {
                const size_t first = k.neighbours ? 2 * i : i, second = k.neighbours ? 2 * i + 1 : i + d / 2;
                const double x = v[first], y = v[second], c = turns[(t * d / 2 + i) * 2], s = turns[(t * d / 2 + i) * 2 + 1];
                v[first] = x * c - y * s, v[second] = y * c + x * s;
            }
        return v;
    };
    for (uint32_t t = 0; t < k.n; t++) {
        for (size_t h = 0; h < k.heads; h++) {
            const vector<double> v = head(q, qb, k.norm ? qn.data() : nullptr, true, t, k.heads, h);
            for (size_t i = 0; i < d; i++)
                near(placed[(t * k.heads + h) * d + i], v[i] * 0.25, 1e-4, "a query: " + k.name());
        }
        for (int which = 0; which < 2; which++)
            for (size_t h = 0; h < k.kv_heads; h++) {
                const vector<double> v = which == 0 ? head(keys, kb, k.norm ? kn.data() : nullptr, true, t, k.kv_heads, h)
                                                    : head(values, vb, nullptr, false, t, k.kv_heads, h);
                const size_t line = (h * k.slots + (k.first + t) % k.slots) * padded;
                for (size_t i = 0; i < padded; i++) {
                    const double found = k.half ? widened(narrow[which][line + i]) : wide[which][line + i];
                    const double expected = i < d ? k.half ? std::min(v[i], 65504.0) : v[i] : 0.0;
                    near(found, expected, 1e-4 + (k.half ? std::ldexp(std::fabs(expected), -11) : 1e-6 * std::fabs(expected)), "the cache: " + k.name());
                }
            }
    }
    // Every other slot is as it was.
    for (int which = 0; which < 2; which++)
        for (size_t i = 0; i < room; i++) {
            const uint32_t slot = uint32_t(i / padded % k.slots), since = (slot + k.slots - k.first % k.slots) % k.slots;
            if (since >= k.n)
                expect(k.half ? narrow[which][i] == 0x7fff : std::isnan(wide[which][i]), "other slots are left alone: " + k.name());
        }
}

struct Attend {
    uint32_t heads, kv_heads, head_dim, slots, window, n, first, splits;
    float cap;
    bool half;
    std::string name() const {
        return std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim) + ", window " +
               std::to_string(window) + ", " + std::to_string(n) + " tokens at " + std::to_string(first) + ", splits " +
               std::to_string(splits) + (cap > 0 ? ", cap" : "") + (half ? ", f16" : "");
    }
};

void attention(const Attend &k) {
    const size_t d = k.head_dim, padded = (d + 3) / 4 * 4, group = k.heads / k.kv_heads, end = k.first + k.n;
    some_schedules(k.n * k.heads * end * d / 8);
    vector<float> q = random(k.n * k.heads * d);
    for (float &v : q)
        v /= float(std::sqrt(double(d)));
    // What no token sees is not a number: it is either not read or not counted.
    const size_t room = k.kv_heads * k.slots * padded;
    vector<float> wide[2]{vector<float>(room, NAN_FILL), vector<float>(room, NAN_FILL)};
    vector<uint16_t> narrow[2]{vector<uint16_t>(room, 0x7fff), vector<uint16_t>(room, 0x7fff)};
    double largest = 0;
    const size_t oldest = end > k.slots ? end - k.slots : 0;
    for (int which = 0; which < 2; which++)
        for (size_t h = 0; h < k.kv_heads; h++)
            for (size_t p = oldest; p < end; p++)
                for (size_t i = 0; i < padded; i++) {
                    const size_t at = (h * k.slots + p % k.slots) * padded + i;
                    const auto half = uint16_t(i < d ? (dice() % 2 << 15) | ((11 + dice() % 6) << 10) | dice() % 1024 : 0);
                    narrow[which][at] = half;
                    wide[which][at] = float(widened(half)) * (k.half ? 1.0f : 1.01f);
                    largest = std::max(largest, std::fabs(double(wide[which][at])));
                }
    vector<uint32_t> position{k.first};
    vector<float> mixed(q.size(), NAN_FILL), parts(q.size() * k.splits, NAN_FILL), ends(k.n * k.heads * k.splits * 2, NAN_FILL);
    AttentionArgs a{};
    a.q = address(q), a.keys = k.half ? address(narrow[0]) : address(wide[0]), a.values = k.half ? address(narrow[1]) : address(wide[1]);
    a.position = address(position), a.out = address(mixed), a.parts = address(parts), a.ends = address(ends);
    a.heads = k.heads, a.kv_heads = k.kv_heads, a.head_dim = k.head_dim, a.slots = k.slots, a.window = k.window, a.n = k.n;
    a.splits = k.splits, a.half_cache = k.half, a.cap = k.cap;
    vector<float> first;
    for (const uint32_t r : {1u, 4u, 8u}) {
        const std::string what = "r" + std::to_string(r) + ", " + k.name();
        const uint32_t quads = up(d, 4), shared = 16 * (r * quads + 32 * (quads | 1)) + 4 * (r * 32 + r);
        std::fill(mixed.begin(), mixed.end(), NAN_FILL);
        launch("attend_r" + std::to_string(r), &a, up(k.n * group, r), k.kv_heads * k.splits, 256, shared,
               {bytes(mixed), bytes(parts), bytes(ends)}, what);
        if (k.splits > 1)
            launch("combine_parts", &a, k.n * k.heads, 1, 128, 0, {bytes(mixed)}, what);
        if (k.splits > 1)
            quantized_in_passing(mixed, uint32_t(k.heads * d), k.n, what, [&](const Quantized &to, const vector<std::function<vector<uint8_t>()>> &outputs) {
                AttentionArgs b = a;
                b.out = 0, b.quantized = to;
                launch("combine_parts_quantize", &b, k.n * k.heads, 1, 128, 0, outputs, what);
            }, uint32_t(d));
        if (first.empty())
            first = mixed;
        expect(std::memcmp(first.data(), mixed.data(), mixed.size() * 4) == 0, "the rows of a block change nothing: " + what);
        for (size_t t = 0; t < k.n; t++)
            for (size_t h = 0; h < k.heads; h++) {
                const size_t mine = k.first + t, least = k.window && mine + 1 > k.window ? mine + 1 - k.window : 0;
                vector<double> scores, expected(d, 0.0);
                double top = -1e300, sum = 0;
                const auto cached = [&](int which, size_t p, size_t i) {
                    const size_t at = (h / group * k.slots + p % k.slots) * padded + i;
                    return double(wide[which][at]);
                };
                for (size_t p = least; p <= mine; p++) {
                    double score = 0;
                    for (size_t i = 0; i < d; i++)
                        score += q[(t * k.heads + h) * d + i] * cached(0, p, i);
                    if (k.cap > 0)
                        score = k.cap * std::tanh(score / k.cap);
                    scores.push_back(score);
                    top = std::max(top, score);
                }
                double steepest = 0;
                for (size_t p = least; p <= mine; p++) {
                    const double chance = std::exp(scores[p - least] - top);
                    steepest = std::max(steepest, std::fabs(scores[p - least]));
                    sum += chance;
                    for (size_t i = 0; i < d; i++)
                        expected[i] += chance * cached(1, p, i);
                }
                for (size_t i = 0; i < d; i++)
                    near(mixed[(t * k.heads + h) * d + i], expected[i] / sum, 2e-6 * largest * (1 + steepest), "attention, " + what);
            }
    }
}

void gate(uint32_t width, uint32_t n, bool gelu, bool bias) {
    some_schedules(size_t(width) * n);
    vector<float> g = random(size_t(width) * n), u = random(g.size()), gb = random(width), ub = random(width), result(g.size(), NAN_FILL);
    const float ends[]{0.0f, 100.0f, -100.0f, 1e4f, -1e4f, 88.0f, -88.0f};
    for (size_t i = 0; i < 7 && i < g.size(); i++)
        g[i] = ends[i];
    GateArgs a{};
    a.gate = address(g), a.up = address(u), a.gate_bias = bias ? address(gb) : 0, a.up_bias = bias ? address(ub) : 0;
    a.out = address(result), a.width = width, a.n = n, a.gelu = gelu;
    launch("gate_up", &a, up(width, 256), std::min(n, 2u), 256, 0, {bytes(result)}, "gate");
    for (size_t i = 0; i < g.size(); i++) {
        const double x = double(g[i]) + (bias ? gb[i % width] : 0.0f), v = double(u[i]) + (bias ? ub[i % width] : 0.0f);
        const double act = gelu ? 0.5 * x * (1 + std::tanh(0.7978845608 * (x + 0.044715 * x * x * x))) : x / (1 + std::exp(-x));
        near(result[i], act * v, 4e-6 * std::fabs(v) * (1 + std::fabs(act)), (gelu ? "gelu of " : "silu of ") + std::to_string(x));
    }
    quantized_in_passing(result, width, n, "gate", [&](const Quantized &to, const vector<std::function<vector<uint8_t>()>> &outputs) {
        GateArgs b = a;
        b.out = 0, b.quantized = to;
        launch("gate_up_quantize", &b, up(to.columns.slices, 8 * to.block), std::min(n, 2u), 256, 0, outputs, "gate");
    });
}

// What is quantised in passing and is not finite is reported.
void gate_of_infinity() {
    some_schedules(1);
    vector<float> g(140, 1.0f), u(140, 2.0f), result(140, NAN_FILL);
    u[75] = std::numeric_limits<float>::infinity();
    GateArgs a{};
    a.gate = address(g), a.up = address(u), a.out = address(result), a.width = 70, a.n = 2;
    launch("gate_up", &a, 1, 2, 256, 0, {bytes(result)}, "infinity");
    quantized_in_passing(result, 70, 2, "infinity", [&](const Quantized &to, const vector<std::function<vector<uint8_t>()>> &outputs) {
        GateArgs b = a;
        b.out = 0, b.quantized = to;
        launch("gate_up_quantize", &b, up(to.columns.slices, 8 * to.block), 2, 256, 0, outputs, "infinity");
    });
}

void logits() {
    some_schedules(1);
    vector<float> v{0.0f, 1.0f, -3.0f, 1e-4f, 500.0f, -1e30f}, before = v;
    LogitArgs a{};
    a.logits = address(v), a.count = v.size(), a.cap = 30.0f;
    schedules = {1};
    launch("softcap", &a, 1, 1, 256, 0, {}, "soft cap");
    for (size_t i = 0; i < v.size(); i++)
        near(v[i], 30.0 * std::tanh(before[i] / 30.0), 4e-6 * (1e-3 + std::fabs(v[i])), "the soft cap of " + std::to_string(before[i]));

    // The greatest, the first among equals; no token where one is not finite.
    constexpr uint32_t NO_TOKEN = 0xffffffff;
    const auto best_of = [](vector<float> values, uint32_t blocks) {
        vector<uint32_t> parts(2 * blocks, 77), token{99}, id{99}, position{41};
        LogitArgs b{};
        b.logits = address(values), b.parts = address(parts), b.token = address(token), b.id = address(id);
        b.position = address(position), b.count = values.size(), b.blocks = blocks;
        some_schedules(1);
        launch("greatest", &b, blocks, 1, 256, 64, {bytes(parts)}, "greatest");
        schedules = {3};
        launch("advance", &b, 1, 1, 32, 0, {}, "advance");
        expect(id[0] < values.size() && (token[0] == id[0] || token[0] == NO_TOKEN), "the id is one of the vocabulary");
        expect(position[0] == 42, "the step moves on");
        return token[0];
    };
    expect(best_of({-5.0f}, 1) == 0, "one logit");
    expect(best_of({1.0f, 3.0f, 3.0f, 2.0f}, 1) == 1, "the first of equals");
    expect(best_of({-0.0f, 0.0f}, 2) == 1, "zero is above minus zero");
    expect(best_of({-3.0f, -2.0f, -2.5f}, 3) == 1, "all below zero");
    constexpr float INF = std::numeric_limits<float>::infinity();
    for (const float bad : {std::nanf(""), -std::nanf(""), INF, -INF})
        for (const uint32_t blocks : {1u, 2u})
            expect(best_of({1.0f, 2.0f, bad, 3.0f}, blocks) == NO_TOKEN, "a logit that is " + std::to_string(bad));
    expect(best_of({std::numeric_limits<float>::max(), 1.0f}, 1) == 0, "the greatest number");
    expect(best_of({-std::numeric_limits<float>::max()}, 1) == 0, "the least number");
    vector<float> many = random(3000);
    many[2111] = many[1500] = many[2999] = 1e6f;
    for (const uint32_t blocks : {1u, 2u, 5u, 40u})
        expect(best_of(many, blocks) == 1500, "the first of equals in many blocks");
}

} // namespace

void test_transformer() {
#ifdef SHIM_RACES
    embed({4, 5, 70, 32, 1, true, true}, 1.0f);
    angles(8, 3, 5);
    add_norm(300, 2, true, true, true, true);
    place_heads({4, 2, 16, 8, 2, 7, true, true, false, true});
    attention({4, 2, 16, 64, 0, 2, 40, 2, 0.0f, true});
    attention({2, 1, 64, 64, 0, 1, 40, 2, 0.0f, true});
    attention({4, 2, 20, 64, 9, 3, 70, 1, 5.0f, false});
    gate(300, 2, true, true);
#else
    for (const uint32_t bits : {1u, 2u, 4u, 8u}) {
        embed({bits, 5, 70, 32, 1, true, bits > 1}, 1.0f);
        embed({bits, 3, 259, 40, 1, false, false}, 5.656854f);
        embed({bits, 2, 65, 0, 1, false, bits > 1}, 1.0f);
    }
    for (const uint32_t first : {0u, 1u, 511u, 131071u})
        angles(40, 3, first);
    angles(1, 1, 3);
    for (const uint32_t width : {1u, 33u, 256u, 2600u}) {
        add_norm(width, 3, false, false, false, true);
        add_norm(width, 3, true, false, false, true);
        add_norm(width, 2, true, true, false, true);
        add_norm(width, 2, true, true, true, true);
        add_norm(width, 1, true, false, true, false);
    }
    for (const uint32_t d : {2u, 6u, 16u, 64u, 80u, 128u, 256u})
        for (const bool half : {false, true}) {
            place_heads({4, 2, d, 9, 3, 7, half, half, false, half});
            place_heads({3, 1, d, 16, 1, 0, false, false, true, half});
            place_heads({2, 2, d, 4, 2, 2, true, false, true, half});
        }
    for (const uint32_t d : {2u, 6u, 16u, 64u, 80u, 128u, 256u})
        for (const bool half : {false, true}) {
            attention({2, 2, d, 16, 0, 1, 0, 1, 0.0f, half});      // the first token
            attention({4, 1, d, 80, 0, 1, 67, 1, 0.0f, half});     // one token, one block
            attention({7, 1, d, 128, 0, 1, 100, 3, 4.0f, half});   // one token, split, soft cap
            attention({3, 1, d, 128, 0, 2, 70, 2, 0.0f, half});    // two, split
            attention({4, 2, d, 48, 20, 1, 130, 4, 0.0f, half});   // a ring; splits without a step
            attention({6, 2, d, 64, 24, 5, 90, 1, 0.0f, half});    // several tokens in a ring
            attention({2, 1, d, 64, 0, 9, 0, 1, 2.0f, half});      // from the beginning
        }
    attention({8, 2, 16, 2048, 0, 1, 2000, 16, 0.0f, true});
    attention({4, 2, 32, 300, 1, 33, 31, 1, 0.0f, true}); // a window of one
    for (const bool gelu : {false, true}) {
        gate(1, 1, gelu, false);
        gate(301, 3, gelu, true);
    }
#endif
    gate_of_infinity();
    logits();
}
