// Attention on every instruction set, against float64: prompts and single tokens, grouped heads, odd sizes, windows, caches with room
// to spare, in exact memory and at odd addresses. Options: isas.h.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <string>

#include "attentions.h"
#include "isas.h"

using namespace test;

namespace {

const Shape SHAPES[] = {
    // batch, tokens, past, heads, kv_heads, dim, spare, window, norms
    {1, 1, 0, 1, 1, 2, 0, 0, false},      {1, 1, 0, 4, 1, 64, 3, 0, true},      {2, 1, 5, 8, 2, 80, 1, 0, false},
    {1, 1, 63, 6, 6, 34, 0, 0, true},     {2, 1, 64, 4, 2, 128, 7, 0, true},    {1, 1, 20, 2, 1, 512, 0, 0, true},
    {1, 1, 700, 4, 1, 64, 0, 0, false},   {2, 1, 1100, 2, 2, 18, 9, 0, true},   {1, 1, 700, 8, 1, 32, 5, 100, false},
    {1, 1, 640, 8, 1, 32, 5, 64, false},  {1, 1, 1201, 3, 1, 66, 0, 1, false},  {1, 3, 61, 4, 2, 30, 0, 0, true},
    {2, 5, 509, 4, 4, 16, 2, 0, false},   {1, 16, 600, 2, 1, 48, 0, 70, true},  {1, 17, 0, 4, 2, 64, 0, 0, false},
    {2, 17, 47, 6, 2, 10, 3, 0, true},    {1, 33, 0, 3, 1, 256, 0, 0, false},   {1, 70, 131, 8, 2, 20, 1, 0, true},
    {1, 130, 0, 4, 1, 32, 0, 0, false},   {1, 130, 70, 2, 2, 6, 4, 40, true},   {2, 100, 0, 2, 1, 64, 0, 64, false},
    {1, 2, 3, 100, 1, 8, 0, 0, false},    {1, 40, 201, 2, 1, 14, 0, 500, true},  {1, 40, 500, 2, 2, 64, 0, 0, false},
    {1, 90, 960, 3, 3, 70, 0, 90, true},
};

bool near(const std::vector<double> &exact, const Values<float> &values, int64_t at, double most) {
    double difference = 0, size = 0;
    for (size_t d = 0; d < exact.size(); ++d) {
        const double wrong = values[at + static_cast<int64_t>(d)] - exact[d];
        difference += wrong * wrong, size += exact[d] * exact[d];
    }
    return difference <= most * most * size;  // false for NaN
}

bool same_bits(const Values<float> &a, int64_t at, const Values<float> &b, int64_t from, int64_t count) {
    return !std::memcmp(a.bytes() + 4 * at, b.bytes() + 4 * from, static_cast<size_t>(4 * count));
}

// Queries and new keys are normed and rotated, new values copied, and all else in the cache and between tokens as it was.
bool prepares(const Attention &t, const Attention &before) {
    constexpr double MOST = 1e-6;
    for (int64_t row = 0; row < t.s.batch * t.s.tokens; ++row) {
        const int64_t sequence = row / t.s.tokens, token = row % t.s.tokens;
        for (int64_t head = 0; head < t.s.heads; ++head) {
            const int64_t at = t.query_at(row, head);
            if (!near(prepared(before, before.q, at, t.s.norms ? &t.q_norm : nullptr, token), t.q, at, MOST)) return std::puts("queries"), false;
        }
        for (int64_t head = 0; head < t.s.kv_heads; ++head) {
            const int64_t from = t.new_at(row, head), to = t.cached_at(sequence, head, t.s.past + token);
            if (!near(prepared(before, before.k, from, t.s.norms ? &t.k_norm : nullptr, token), t.keys, to, MOST)) return std::puts("keys"), false;
            if (!same_bits(t.values, to, t.v, from, t.s.dim)) return std::puts("values"), false;
        }
    }
    for (int64_t i = 0; i < t.keys.size(); ++i) {
        const int64_t token = i / t.s.dim % t.a.capacity;
        if (token >= t.s.past && token < t.s.past + t.s.tokens) continue;
        if (!same_bits(t.keys, i, before.keys, i, 1) || !same_bits(t.values, i, before.values, i, 1)) return std::puts("the cache"), false;
    }
    for (int64_t i = 0; i < t.q.size(); ++i)
        if (i % t.a.ldq >= t.s.heads * t.s.dim && (!same_bits(t.q, i, before.q, i, 1) || !same_bits(t.out, i, before.out, i, 1)))
            return std::puts("between tokens"), false;
    return true;
}

// An error of a score is an error of its exponential, so larger scores may differ by more.
bool attends(const Attention &t) {
    for (int64_t row = 0, at = 0; row < t.s.batch * t.s.tokens; ++row)
        for (int64_t head = 0; head < t.s.heads; ++head, ++at) {
            if (at % every()) continue;
            double largest;
            const std::vector<double> exact = attended(t, row / t.s.tokens, row % t.s.tokens, head, largest);
            if (!near(exact, t.out, t.query_at(row, head), 2e-6 * (1 + largest)))
                return std::printf("sequence %d, token %d, head %d\n", int(row / t.s.tokens), int(row % t.s.tokens), int(head)), false;
        }
    return true;
}

// The same bits at odd addresses, with nothing between tokens, by other numbers of threads.
bool same_elsewhere(const Attention &t, uint32_t seed) {
    for (const int threads : {1, 5}) {
        state() = seed;
        Attention other(t.s, 0, static_cast<size_t>(threads % 4));
        isobit_cpu_set_threads(threads);
        const int failed = isobit_cpu_attention(&other.a);
        isobit_cpu_set_threads(2);
        if (failed || !other.keys.same(t.keys) || !other.values.same(t.values)) return std::puts("the cache elsewhere"), false;
        const int64_t length = t.s.heads * t.s.dim;
        for (int64_t row = 0; row < t.s.batch * t.s.tokens; ++row) {
            const int64_t at = row * t.a.ldq, there = row * other.a.ldq;
            if (!same_bits(t.out, at, other.out, there, length) || !same_bits(t.q, at, other.q, there, length))
                return std::printf("token %d elsewhere, %d threads\n", int(row), threads), false;
        }
    }
    return true;
}

// Tokens give the same bits in one call, one after the other, and some at a time.
bool same_in_parts(const Attention &t, uint32_t seed) {
    if (t.s.batch > 1) return true;
    for (const int64_t at_once : {1, 2, 18}) {
        state() = seed;
        Attention other(t.s, 3);
        for (int64_t at = 0; at < t.s.tokens; at += at_once) {
            isobit_attention a = other.a;
            a.tokens = std::min(at_once, t.s.tokens - at), a.past += at;
            a.q += at * a.ldq, a.k += at * a.ldk, a.v += at * a.ldv, a.out += at * a.ldo, a.cos += at * a.dim, a.sin += at * a.dim;
            if (isobit_cpu_attention(&a)) return false;
        }
        if (!other.keys.same(t.keys) || !other.out.same(t.out)) return std::printf("%d tokens at a time\n", int(at_once)), false;
    }
    return true;
}

bool right(const Shape &s) {
    const uint32_t seed = state();
    const Attention before(s, 3);
    state() = seed;
    Attention t(s, 3);
    return !isobit_cpu_attention(&t.a) && prepares(t, before) && attends(t) && same_elsewhere(t, seed) && same_in_parts(t, seed);
}

bool all_shapes() {
    for (const Shape &s : SHAPES)
        if (!right(s))
            return std::printf("batch %d, %d tokens behind %d, %d heads on %d of %d, window %d\n", int(s.batch), int(s.tokens),
                               int(s.past), int(s.heads), int(s.kv_heads), int(s.dim), int(s.window)),
                   false;
    return true;
}

// A NaN in a query stays in what that query gives; one in a new value reaches what sees it, and no other sequence.
bool nan_stays() {
    for (const Shape &s : {Shape{2, 1, 70, 4, 2, 24, 0, 0, true}, Shape{2, 20, 50, 4, 2, 24, 1, 0, false}}) {
        Attention query(s), value(s);
        const int64_t bad = s.tokens / 2, head = 1;
        query.q.put(query.query_at(bad, head) + 5, NAN);
        value.v.put(value.new_at(bad, 0) + 5, NAN);
        if (isobit_cpu_attention(&query.a) || isobit_cpu_attention(&value.a)) return false;
        for (int64_t i = 0; i < query.out.size(); ++i) {
            const int64_t row = i / query.a.ldq, in_row = i % query.a.ldq;
            if (std::isnan(query.out[i]) != (row == bad && in_row / s.dim == head)) return std::puts("NaN of a query"), false;
            const bool sees = row >= bad && row < s.tokens && in_row / s.dim < 2 && in_row % s.dim == 5;
            if (sees ? !std::isnan(value.out[i]) : row >= s.tokens && std::isnan(value.out[i])) return std::puts("NaN of a value"), false;
        }
    }
    return true;
}

const Check CHECKS[] = {{"all shapes", all_shapes}, {"NaN", nan_stays}};

}  // namespace

int main(int count, char **arguments) {
    return on_every_isa(count, arguments, [](const std::string &isa) { return run_all(isa, "attention", CHECKS); });
}
