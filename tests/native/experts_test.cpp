// Mixtures of experts on every instruction set: each token gives what its experts' linears give one by one, whatever comes with it; routers
// against float64; and what is refused. Options: isas.h.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "isas.h"
#include "linears.h"

using namespace test;

namespace {

constexpr int64_t HIDDEN = 128, INNER = 256;
constexpr float INF = std::numeric_limits<float>::infinity();

// A format of experts: each has scales of its own.
Case for_experts(Case c) {
    if (c.bits <= 8 && !c.block_rows) c.block_rows = 1;
    return c;
}

// The matrices of all experts in one role; blocks of rows that do not divide one leave rows between them.
struct Role {
    const int64_t experts, stride;
    Linear all;
    Values<float> bias, scales;
    isobit_grouped w{};

    Role(const Case &c, int64_t count, int64_t n, int64_t k, bool own_scales, size_t shift)
        : experts(count), stride(c.block_rows > 1 ? (n + c.block_rows - 1) / c.block_rows * c.block_rows : n + 3),
          all(c, count * stride, k, 0, shift), bias(count * n, shift), scales(count, shift) {
        fill(bias);
        for (int64_t i = 0; i < count; ++i) scales.put(i, 0.01f + 0.001f * static_cast<float>(i));
        w.of = all.w, w.of.n = n, w.of.bias = bias.data(), w.of.alike = 1;
        w.experts = count, w.stride = stride, w.input_scales = own_scales ? scales.data() : nullptr;
    }

    isobit_linear expert(int64_t number) const {
        isobit_linear one = w.of;
        one.codes = all.codes.data() + number * stride * all.row_bytes;
        const int64_t at = one.block_rows ? number * (stride / one.block_rows) * all.groups : 0;
        const int size = one.scale_format == ISOBIT_F32 ? 4 : one.scale_format == ISOBIT_BF16 || one.scale_format == ISOBIT_F16 ? 2 : 1;
        if (one.scales) one.scales = static_cast<const uint8_t *>(one.scales) + at * size;
        if (one.over) one.over += number * stride;
        if (one.zeros) one.zeros += at;
        one.bias += number * one.n;
        if (w.input_scales) one.input_scale = scales[number];
        return one;
    }
};

struct Mixture {
    const Role gate, up, down;
    isobit_experts e{};

    Mixture(const Case &c, int64_t experts, bool own_scales, size_t shift = 0)
        : gate(c, experts, INNER, HIDDEN, own_scales, shift), up(c, experts, INNER, HIDDEN, own_scales, shift),
          down(c, experts, HIDDEN, INNER, own_scales, shift) {
        e.gate = gate.w, e.up = up.w, e.down = down.w, e.activation = ISOBIT_SILU;
    }

    // What one expert gives for a row, and the row of its inner values; the calls that the library has for linears.
    bool one(int64_t expert, const float *x, float *inner, float *out) const {
        std::vector<float> gates(INNER), ups(INNER);
        const isobit_linear linears[] = {gate.expert(expert), up.expert(expert), down.expert(expert)};
        return !isobit_cpu_linear(&linears[0], x, 1, HIDDEN, gates.data(), INNER) && !isobit_cpu_linear(&linears[1], x, 1, HIDDEN, ups.data(), INNER) &&
               !isobit_cpu_gate(e.activation, e.limit, gates.data(), ups.data(), 1, INNER, INNER, inner) &&
               !isobit_cpu_linear(&linears[2], inner, 1, INNER, out, HIDDEN);
    }
};

struct Tokens {
    const int64_t count, active;
    Values<float> x, weights;
    Values<int32_t> ids;

    // `some`: as many experts are used.
    Tokens(int64_t m, int64_t each, int64_t some, size_t shift = 0) : count(m), active(each), x(m * HIDDEN, shift), weights(m * each, shift), ids(m * each) {
        fill(x), fill(weights);
        for (int64_t i = 0; i < m; ++i) {  // some rows that cannot be written in digits
            if (i % 3 == 1)
                for (int64_t k = 0; k < HIDDEN; ++k) x.put(i * HIDDEN + k, k % 64 ? x[i * HIDDEN + k] * 1e-6f : 1);
            const int64_t first = next() >> 8;
            for (int64_t a = 0; a < each; ++a) ids.put(i * each + a, static_cast<int32_t>((first + a * 5) % some));
        }
    }
};

bool near(const Values<float> &found, int64_t at, const std::vector<double> &exact) {
    double wrong = 0, size = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        const double difference = found[at + static_cast<int64_t>(i)] - exact[i];
        wrong += difference * difference, size += exact[i] * exact[i];
    }
    return wrong <= 1e-12 * size;
}

// Every token by hand, and the rows that go into down, in any order.
bool by_hand(const Mixture &m, const Tokens &t, const Values<float> &y, const Values<float> &inner) {
    std::vector<std::vector<float>> rows, found;
    for (int64_t i = 0; i < t.count; ++i) {
        std::vector<double> exact(HIDDEN);
        for (int64_t a = 0; a < t.active; ++a) {
            const float weight = t.weights[i * t.active + a];
            std::vector<float> x(HIDDEN), row(INNER), out(HIDDEN);
            for (int64_t k = 0; k < HIDDEN; ++k) x[static_cast<size_t>(k)] = t.x[i * HIDDEN + k] * (m.e.on_input ? weight : 1);
            if (!m.one(t.ids[i * t.active + a], x.data(), row.data(), out.data())) return false;
            for (int64_t k = 0; k < HIDDEN; ++k) exact[static_cast<size_t>(k)] += static_cast<double>(out[static_cast<size_t>(k)]) * (m.e.on_input ? 1 : weight);
            rows.push_back(row);
        }
        if (!near(y, i * HIDDEN, exact)) return std::printf("token %d of %d\n", int(i), int(t.count)), false;
    }
    for (int64_t i = 0; i < t.count * t.active; ++i) {
        found.emplace_back(INNER);
        std::memcpy(found.back().data(), inner.bytes() + 4 * i * INNER, 4 * INNER);
    }
    std::sort(rows.begin(), rows.end()), std::sort(found.begin(), found.end());
    return rows == found || (std::puts("what goes into down"), false);
}

bool right(const Mixture &m, const Tokens &t) {
    Values<float> y(t.count * HIDDEN), inner(t.count * t.active * INNER), again(t.count * HIDDEN, 1);
    const auto call = [&](int64_t from, int64_t count, float *out, float *wanted) {
        return !isobit_cpu_experts(&m.e, t.x.data() + from * HIDDEN, count, HIDDEN, t.ids.data() + from * t.active, t.weights.data() + from * t.active,
                                   t.active, out, wanted);
    };
    if (!call(0, t.count, y.data(), inner.data()) || !by_hand(m, t, y, inner)) return false;
    for (const int threads : {1, 5}) {
        isobit_cpu_set_threads(threads);
        const bool done = call(0, t.count, again.data(), nullptr);
        isobit_cpu_set_threads(2);
        if (!done || !again.same(y)) return std::printf("%d threads\n", threads), false;
    }
    for (int64_t i = 0; i < t.count; i += 1 + t.count / 4) {
        Values<float> alone(HIDDEN);
        if (!call(i, 1, alone.data(), nullptr) || std::memcmp(alone.bytes(), y.bytes() + 4 * i * HIDDEN, 4 * HIDDEN))
            return std::printf("token %d alone\n", int(i)), false;
    }
    return true;
}

bool every_format() {
    for (const Case &of : CASES) {
        const Case c = for_experts(of);
        const bool own = c.input_scale > 0;
        if (c.activation_group && INNER % c.activation_group) continue;
        if (!fits(c, HIDDEN) || !fits(c, INNER)) continue;
        Mixture m(c, 7, own, c.bits == 8 ? 1 : 0);
        for (const auto &[count, active, some] : {std::array<int64_t, 3>{1, 3, 7}, {5, 2, 7}, {every() > 1 ? 4 : 40, 2, 3}})
            if (!right(m, Tokens(count, active, some))) return std::printf("%s, %d tokens\n", c.name, int(count)), false;
    }
    return true;
}

// Where it is not asked that a row be the same alone, those of one expert give what its linears give for all of them in one call, whether they
// can be written in digits or not.
bool many_of_one_expert() {
    for (const Case &of : CASES) {
        const Case c = for_experts(of);
        if (c.activation_group && INNER % c.activation_group) continue;
        if (!fits(c, HIDDEN) || !fits(c, INNER)) continue;
        Mixture m(c, 2, c.input_scale > 0);
        m.e.gate.of.alike = m.e.up.of.alike = m.e.down.of.alike = 0;
        const Tokens t(every() > 1 ? 30 : 70, 1, 2);
        Values<float> y(t.count * HIDDEN), inner(t.count * INNER);
        if (isobit_cpu_experts(&m.e, t.x.data(), t.count, HIDDEN, t.ids.data(), t.weights.data(), 1, y.data(), inner.data())) return false;
        int64_t before = 0;
        for (int32_t expert = 0; expert < 2; ++expert) {
            std::vector<int64_t> tokens;
            for (int64_t i = 0; i < t.count; ++i)
                if (t.ids[i] == expert) tokens.push_back(i);
            const int64_t count = static_cast<int64_t>(tokens.size());
            Values<float> x(count * HIDDEN), gates(count * INNER), ups(count * INNER), rows(count * INNER), out(count * HIDDEN);
            for (int64_t i = 0; i < count; ++i) std::memcpy(x.bytes() + 4 * i * HIDDEN, t.x.bytes() + 4 * tokens[static_cast<size_t>(i)] * HIDDEN, 4 * HIDDEN);
            isobit_linear linears[] = {m.gate.expert(expert), m.up.expert(expert), m.down.expert(expert)};
            for (isobit_linear &one : linears) one.alike = 0;
            if (isobit_cpu_linear(&linears[0], x.data(), count, HIDDEN, gates.data(), INNER) || isobit_cpu_linear(&linears[1], x.data(), count, HIDDEN, ups.data(), INNER) ||
                isobit_cpu_gate(m.e.activation, 0, gates.data(), ups.data(), count, INNER, INNER, rows.data()) ||
                isobit_cpu_linear(&linears[2], rows.data(), count, INNER, out.data(), HIDDEN))
                return false;
            if (std::memcmp(rows.bytes(), inner.bytes() + 4 * before * INNER, static_cast<size_t>(4 * count * INNER)))
                return std::printf("%s: what goes into down of %d rows\n", c.name, int(count)), false;
            before += count;
            for (int64_t i = 0; i < count; ++i) {
                std::vector<double> exact(HIDDEN);
                const int64_t token = tokens[static_cast<size_t>(i)];
                for (int64_t k = 0; k < HIDDEN; ++k) exact[static_cast<size_t>(k)] = static_cast<double>(out[i * HIDDEN + k]) * t.weights[token];
                if (!near(y, token * HIDDEN, exact)) return std::printf("%s: token %d of %d rows\n", c.name, int(token), int(count)), false;
            }
        }
    }
    return true;
}

bool one_and_all() {
    const Case &c = case_of(ISOBIT_INT8, ISOBIT_ACT_INT8), &plain = case_of(ISOBIT_BF16, ISOBIT_ACT_NONE);
    Mixture one(c, 1, false), many(plain, 9, false);
    if (!right(one, Tokens(1, 1, 1)) || !right(one, Tokens(30, 1, 1)) || !right(many, Tokens(20, 9, 9))) return false;
    many.e.on_input = 1;
    if (!right(many, Tokens(9, 1, 9))) return std::puts("weights of inputs"), false;
    many.e.on_input = 0, many.e.limit = 0.4f;
    if (!right(many, Tokens(3, 2, 9))) return std::puts("a limit"), false;
    many.e.limit = 0, many.e.activation = ISOBIT_GELU;
    const Tokens none(0, 2, 9);
    Values<float> y(0);
    return right(many, Tokens(3, 2, 9)) && !isobit_cpu_experts(&many.e, none.x.data(), 0, HIDDEN, none.ids.data(), none.weights.data(), 2, y.data(), nullptr);
}

// ---- routers ----

struct Routed {
    isobit_router r{};
    int64_t experts;
    Linear linear;
    Values<float> correction;

    Routed(int64_t count, int32_t scores, int64_t active) : experts(count), linear(case_of(ISOBIT_F32, ISOBIT_ACT_NONE), count, HIDDEN), correction(count) {
        fill(correction, 0.3f);
        linear.w.alike = 1;
        r.weight = &linear.w, r.active = active, r.groups = r.active_groups = 1, r.scale = 1, r.least_sum = 1e-20f, r.scores = scores, r.tolerance = 0.4f;
    }

    // Of scores in float64: ids by the law, and their weights.
    void exact(const std::vector<float> &logits, std::vector<int32_t> &ids, std::vector<double> &weights) const {
        std::vector<double> scores(logits.begin(), logits.end());
        const double highest = *std::max_element(scores.begin(), scores.end());
        double total = 0;
        for (const double logit : scores) total += std::exp(logit - highest);
        for (double &score : scores) {
            if (r.scores == ISOBIT_SOFTMAX) score = std::exp(score - highest) / total;
            if (r.scores == ISOBIT_SIGMOID) score = 1 / (1 + std::exp(-score));
        }
        std::vector<double> choice = scores;
        if (r.correction)
            for (int64_t i = 0; i < experts; ++i) choice[static_cast<size_t>(i)] += correction[i];
        const int64_t size = experts / r.groups;
        std::vector<double> quality;
        for (int64_t g = 0; g < r.groups; ++g) {
            std::vector<double> of(choice.begin() + g * size, choice.begin() + (g + 1) * size);
            std::sort(of.rbegin(), of.rend());
            quality.push_back(r.best_two && size > 1 ? of[0] + of[1] : of[0]);
        }
        const auto order = [](const std::vector<double> &values) {
            std::vector<int32_t> numbers(values.size());
            std::iota(numbers.begin(), numbers.end(), 0);
            std::stable_sort(numbers.begin(), numbers.end(), [&](int32_t a, int32_t b) { return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)]; });
            return numbers;
        };
        const std::vector<int32_t> groups = order(quality);
        for (int64_t g = 0; g < r.groups; ++g)
            if (std::find(groups.begin(), groups.begin() + r.active_groups, static_cast<int32_t>(g)) == groups.begin() + r.active_groups)
                std::fill_n(choice.begin() + g * size, size, -INF);
        const std::vector<int32_t> best = order(choice);
        ids.assign(best.begin(), best.begin() + r.active);
        weights.clear();
        for (const int32_t id : ids) weights.push_back(r.scores == ISOBIT_SOFTMAX_BEHIND ? std::exp(scores[static_cast<size_t>(id)] - scores[static_cast<size_t>(ids[0])]) : scores[static_cast<size_t>(id)]);
        for (size_t at = 0; r.scores == ISOBIT_SPARSEMIXER && at < ids.size(); ++at) {
            const float own = logits[static_cast<size_t>(ids[at])];
            double sum_near = 0;
            for (int32_t i = 0; i < experts; ++i) {
                const float other = logits[static_cast<size_t>(i)];
                const bool before = std::find(ids.begin(), ids.begin() + static_cast<int64_t>(at), i) != ids.begin() + static_cast<int64_t>(at);
                if (!before && !((own - other) / std::max(std::fabs(other), own) > r.tolerance)) sum_near += std::exp(double{other} - own);
            }
            weights[at] = 1 / sum_near;
        }
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (double &weight : weights) weight = weight / (r.renormalize || r.scores == ISOBIT_SOFTMAX_BEHIND ? sum : 1) * r.scale;
    }

    bool right(int64_t m) const {
        Values<float> x(m * HIDDEN), weights(m * r.active), logits(m * experts);
        Values<int32_t> ids(m * r.active);
        fill(x, 0.2f);
        if (isobit_cpu_route(&r, x.data(), m, HIDDEN, ids.data(), weights.data())) return false;
        if (isobit_cpu_linear(r.weight, x.data(), m, HIDDEN, logits.data(), experts)) return false;
        for (int64_t row = 0; row < m; ++row) {
            std::vector<float> of(static_cast<size_t>(experts));
            std::memcpy(of.data(), logits.bytes() + 4 * row * experts, static_cast<size_t>(4 * experts));
            std::vector<int32_t> right_ids;
            std::vector<double> right_weights;
            exact(of, right_ids, right_weights);
            for (int64_t a = 0; a < r.active; ++a) {
                const double wanted = right_weights[static_cast<size_t>(a)];
                if (ids[row * r.active + a] != right_ids[static_cast<size_t>(a)]) return std::puts("an expert"), false;
                if (!(std::fabs(weights[row * r.active + a] - wanted) <= 2e-6 * std::fabs(wanted))) return std::puts("a weight"), false;
            }
        }
        return true;
    }
};

bool routers() {
    for (const int32_t scores : {ISOBIT_SOFTMAX, ISOBIT_SIGMOID, ISOBIT_SOFTMAX_BEHIND, ISOBIT_SPARSEMIXER})
        for (const int64_t experts : {1, 8, 24, 128})
            for (const bool grouped : {false, true})
                for (const bool corrected : {false, true}) {
                    Routed routed(experts, scores, std::min<int64_t>(4, experts));
                    if (grouped && experts >= 8) routed.r.groups = 4, routed.r.active_groups = 2, routed.r.best_two = corrected, routed.r.scale = 2.5f;
                    routed.r.correction = corrected ? routed.correction.data() : nullptr, routed.r.renormalize = corrected;
                    if (!routed.right(20)) return std::printf("scores %d of %d\n", int(scores), int(experts)), false;
                }
    return true;
}

// Equal scores: the lower number first.
bool ties() {
    Routed routed(16, ISOBIT_SOFTMAX, 3);
    const Values<float> x(HIDDEN);
    Values<float> weights(3), zero(HIDDEN), bias(16);
    Values<int32_t> ids(3);
    fill_with(zero, 0), fill_with(bias, 1);
    bias.put(9, 2), bias.put(4, 2);
    routed.linear.w.bias = bias.data();
    if (isobit_cpu_route(&routed.r, zero.data(), 1, HIDDEN, ids.data(), weights.data())) return false;
    if (ids[0] != 4 || ids[1] != 9 || ids[2] != 0) return std::printf("%d, %d, %d\n", int(ids[0]), int(ids[1]), int(ids[2])), false;
    routed.r.groups = 4, routed.r.active_groups = 1, fill_with(bias, 1);
    if (isobit_cpu_route(&routed.r, zero.data(), 1, HIDDEN, ids.data(), weights.data())) return false;
    if (ids[0] != 0 || ids[1] != 1 || ids[2] != 2) return std::puts("groups"), false;
    fill_with(bias, NAN);
    if (isobit_cpu_route(&routed.r, zero.data(), 1, HIDDEN, ids.data(), weights.data())) return false;
    for (int i = 0; i < 3; ++i)
        if (ids[i] < 0 || ids[i] >= 16) return std::puts("an expert that is not there"), false;
    return true;
}

bool gates() {
    for (const int64_t n : {1, 37, 200}) {
        Values<float> x(3 * HIDDEN), weight(HIDDEN), y(3 * n), before(3 * n);
        fill(x), fill(weight), fill(y);
        std::memcpy(before.bytes(), y.bytes(), y.byte_count());
        if (isobit_cpu_gate_by(x.data(), weight.data(), 3, HIDDEN, y.data(), n)) return false;
        for (int64_t i = 0; i < 3 * n; ++i) {
            double score = 0;
            for (int64_t k = 0; k < HIDDEN; ++k) score += static_cast<double>(x[i / n * HIDDEN + k]) * weight[k];
            const double exact = before[i] / (1 + std::exp(-score));
            if (!(std::fabs(y[i] - exact) <= 4e-6 * std::fabs(exact))) return std::printf("%g, not %g\n", double(y[i]), exact), false;
        }
    }
    return true;
}

// ---- what is refused ----

struct Wrong {
    const char *what;
    void (*spoil)(isobit_experts &, int32_t *ids, int64_t &m, int64_t &active, int64_t &ldx);
};

#define SPOIL [](isobit_experts & e, int32_t * ids, int64_t & m, int64_t & active, int64_t & ldx)
#define UNUSED (void)e, (void)ids, (void)m, (void)active, (void)ldx

const Wrong WRONG[] = {
    {"an expert < 0", SPOIL { UNUSED; ids[3] = -1; }},
    {"an expert beyond the last", SPOIL { UNUSED; ids[3] = 7; }},
    {"the largest expert", SPOIL { UNUSED; ids[0] = std::numeric_limits<int32_t>::max(); }},
    {"tokens < 0", SPOIL { UNUSED; m = -1; }},
    {"huge tokens", SPOIL { UNUSED; m = int64_t{1} << 31; }},
    {"no experts of a token", SPOIL { UNUSED; active = 0; }},
    {"more experts of a token than there are", SPOIL { UNUSED; active = 8; }},
    {"short rows", SPOIL { UNUSED; ldx = HIDDEN - 1; }},
    {"largest rows", SPOIL { UNUSED; ldx = std::numeric_limits<int64_t>::max(); }},
    {"experts < 1", SPOIL { UNUSED; e.up.experts = 0; }},
    {"fewer experts of one role", SPOIL { UNUSED; e.down.experts = 6; }},
    {"huge experts", SPOIL { UNUSED; e.up.experts = std::numeric_limits<int64_t>::max(); }},
    {"experts that overlap", SPOIL { UNUSED; e.up.stride = INNER - 1; }},
    {"experts far apart", SPOIL { UNUSED; e.up.stride = std::numeric_limits<int64_t>::max(); }},
    {"experts that share scales", SPOIL { UNUSED; e.up.of.block_rows = 0; }},
    {"experts that end inside a block", SPOIL { UNUSED; e.up.of.block_rows = 128; }},
    {"up unlike gate", SPOIL { UNUSED; e.up.of.n = 3; }},
    {"down of another input", SPOIL { UNUSED; e.down.of.k = 8; }},
    {"gate of another input", SPOIL { UNUSED; e.gate.of.k = 8; }},
    {"no codes", SPOIL { UNUSED; e.gate.of.codes = nullptr; }},
    {"no such format", SPOIL { UNUSED; e.gate.of.format = 77; }},
    {"no such activation", SPOIL { UNUSED; e.activation = 9; }},
    {"a limit that is no number", SPOIL { UNUSED; e.limit = NAN; }},
    {"static scales of dynamic activations", SPOIL { UNUSED; e.up.input_scales = e.up.of.bias; }},
};

bool refusals() {
    const Mixture m(case_of(ISOBIT_INT8, ISOBIT_ACT_INT8), 7, false);
    bool good = true;
    for (const Wrong &wrong : WRONG) {
        Tokens t(4, 2, 7);
        Values<float> y(4 * HIDDEN);
        fill_with(y, 5);
        isobit_experts e = m.e;
        int64_t count = 4, active = 2, ldx = HIDDEN;
        wrong.spoil(e, t.ids.data(), count, active, ldx);
        if (!isobit_cpu_experts(&e, t.x.data(), count, ldx, t.ids.data(), t.weights.data(), active, y.data(), nullptr)) good = false, std::printf("not refused: %s\n", wrong.what);
        for (int64_t i = 0; i < y.size(); ++i)
            if (y[i] != 5) return std::printf("%s: something was written\n", wrong.what), false;
    }
    return good;
}

bool refused_routers() {
    bool good = true;
    const auto refused = [&](const char *what, auto spoil) {
        Routed routed(8, ISOBIT_SOFTMAX, 2);
        Values<float> x(HIDDEN), weights(8);
        Values<int32_t> ids(8);
        fill(x);
        spoil(routed.r, routed.linear.w);
        if (!isobit_cpu_route(&routed.r, x.data(), 1, HIDDEN, ids.data(), weights.data())) good = false, std::printf("not refused: %s\n", what);
    };
    refused("no router", [](isobit_router &r, isobit_linear &) { r.weight = nullptr; });
    refused("no codes", [](isobit_router &, isobit_linear &w) { w.codes = nullptr; });
    refused("no experts of a token", [](isobit_router &r, isobit_linear &) { r.active = 0; });
    refused("too many experts of a token", [](isobit_router &r, isobit_linear &) { r.active = 9; });
    refused("no groups", [](isobit_router &r, isobit_linear &) { r.groups = 0; });
    refused("groups that do not divide", [](isobit_router &r, isobit_linear &) { r.groups = 3; });
    refused("more groups than there are", [](isobit_router &r, isobit_linear &) { r.groups = 2, r.active_groups = 3; });
    refused("groups of too few", [](isobit_router &r, isobit_linear &) { r.groups = 8, r.active_groups = 1; });
    refused("no such scores", [](isobit_router &r, isobit_linear &) { r.scores = 4; });
    refused("a tolerance that is no number", [](isobit_router &r, isobit_linear &) { r.scores = ISOBIT_SPARSEMIXER, r.tolerance = NAN; });
    refused("a scale that is no number", [](isobit_router &r, isobit_linear &) { r.scale = NAN; });
    refused("a sum that is no number", [](isobit_router &r, isobit_linear &) { r.least_sum = NAN; });
    return good;
}

const Check CHECKS[] = {
    {"every format", every_format}, {"many rows of one expert", many_of_one_expert}, {"one expert and all", one_and_all}, {"routers", routers}, {"ties", ties}, {"gates", gates},
    {"refusals", refusals}, {"refused routers", refused_routers},
};

}  // namespace

int main(int count, char **arguments) {
    return on_every_isa(count, arguments, [](const std::string &isa) { return run_all(isa, "mixtures of experts", CHECKS); });
}
