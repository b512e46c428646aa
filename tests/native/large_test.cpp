// 64-bit sizes: rows, tokens and heads that lie gigabytes apart, more than 2^32 weights, caches of more than 2^32 bytes. Needs 200 GiB of
// addresses and less than 2 GiB of memory. Options: isas.h.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "attentions.h"
#include "isas.h"
#include "linears.h"
#include "mappings.h"

using namespace test;

namespace {

constexpr int64_t GIB = int64_t{1} << 30;

void copy_rows(uint8_t *to, int64_t to_apart, const uint8_t *from, int64_t from_apart, int64_t rows, int64_t bytes) {
    for (int64_t row = 0; row < rows; ++row) std::memcpy(to + row * to_apart, from + row * from_apart, static_cast<size_t>(bytes));
}

// Rows of weights, activations and results far apart give the bits that they give side by side.
bool far_rows() {
    constexpr int64_t n = 7, k = 384, code_span = 7 * GIB, span = 20 * GIB;
    const Sparse codes(code_span), x(span), y(span);
    for (const Case &c : CASES)
        for (const int64_t m : {2, 5, 17, 65}) {
            const Linear l(c, n, k);
            Values<float> near_x(m * k), near_y(m * n), far_y(m * n);
            fill(near_x);
            if (isobit_cpu_linear(&l.w, near_x.data(), m, k, near_y.data(), n)) return false;
            isobit_linear far = l.w;
            const int64_t apart = span / 4 / m;
            far.codes = codes.bytes(), far.row_bytes = code_span / n;
            copy_rows(codes.bytes(), far.row_bytes, l.codes.data(), l.row_bytes, n, l.row_bytes);
            copy_rows(x.bytes(), 4 * apart, near_x.bytes(), 4 * k, m, 4 * k);
            if (isobit_cpu_linear(&far, x.floats(), m, apart, y.floats(), apart)) return false;
            copy_rows(far_y.bytes(), 4 * n, y.bytes(), 4 * apart, m, 4 * n);
            if (!far_y.same(near_y)) return std::printf("%s, %d rows\n", c.name, int(m)), false;
        }
    return true;
}

double exact_sum(const Linear &l, int64_t row, const float *x) {
    double sum = 0;
    for (int64_t i = 0; i < l.w.k; ++i) sum += l.weight(row, i) * x[i];
    return sum;
}

// A matrix of `bytes` bytes of codes, the same rows again and again: each gives the bits that it gives in a small matrix.
// `period`: that many rows are whole pages, and no power of two.
bool more_weights(const Case &kind, int64_t period, int64_t k, int64_t bytes, int64_t m) {
    Case c = kind;
    c.block_rows = 0;
    const Linear l(c, period, k);
    const Repeated codes(l.codes, bytes);
    const int64_t n = bytes / l.row_bytes;
    isobit_linear small = l.w, large = l.w;
    small.bias = large.bias = nullptr;
    large.n = n, large.codes = codes.bytes();
    Values<float> x(m * k), few(m * period), y(m * n);
    fill(x);
    if (isobit_cpu_linear(&small, x.data(), m, k, few.data(), period) || isobit_cpu_linear(&large, x.data(), m, k, y.data(), n)) return false;
    for (int64_t r = 0; r < m; ++r) {
        for (int64_t row = 0; row < n; row += period)
            if (std::memcmp(y.data() + r * n + row, few.data() + r * period, static_cast<size_t>(4 * std::min(period, n - row))))
                return std::printf("%s, %d rows: behind row %lld\n", c.name, int(m), static_cast<long long>(row)), false;
        for (const int64_t row : {int64_t{0}, n / 2, n - 1}) {
            const double exact = exact_sum(l, row % period, x.data() + r * k);
            if (!c.activations && !(std::fabs(y[r * n + row] - exact) <= 1e-4 * (1 + std::fabs(exact))))
                return std::printf("%s: a sum\n", c.name), false;
        }
    }
    std::printf("  %s: %lld weights in %lld bytes by %d rows\n", c.name, static_cast<long long>(n * k), static_cast<long long>(bytes), int(m));
    return true;
}

bool many_weights() { return more_weights(case_of(ISOBIT_INT8, ISOBIT_ACT_NONE), 8191, 4096, 5 * GIB, 1); }

bool many_weights_of_each_kind() {
    return more_weights(case_of(ISOBIT_E4M3FN, ISOBIT_ACT_NONE), 8191, 4096, 5 * GIB, 1) && more_weights(case_named("int4 g128"), 16382, 4096, 5 * GIB, 1) &&
           more_weights(case_of(ISOBIT_BF16, ISOBIT_ACT_NONE), 4093, 4096, 5 * GIB, 1) &&
           more_weights(case_of(ISOBIT_INT8, ISOBIT_ACT_INT8), 8191, 4096, 5 * GIB, 1) &&
           more_weights(case_of(ISOBIT_INT8, ISOBIT_ACT_INT8), 8191, 4096, 5 * GIB, 17) &&
           more_weights(case_of(ISOBIT_BF16, ISOBIT_ACT_NONE), 4093, 4096, 5 * GIB, 17);
}

// One code that is no number, the last of more than 2^32; and as many bytes read.
bool many_codes() {
    const Linear l(case_of(ISOBIT_E4M3FN, ISOBIT_ACT_NONE), 8191, 4096);
    const Repeated codes(l.codes, 5 * GIB);
    const int64_t rows = codes.size() / 4096;
    if (isobit_cpu_read(codes.bytes(), codes.size()) == ~uint64_t{0}) return false;
    if (isobit_cpu_has_nan(ISOBIT_E4M3FN, codes.bytes(), rows, 4096, 4096) != 0) return false;
    codes.bytes()[codes.size() - 1] = 0x7f;
    return isobit_cpu_has_nan(ISOBIT_E4M3FN, codes.bytes(), rows, 4096, 4096) == 1;
}

// Heads of a cache and tokens far apart give the bits that they give side by side.
bool far_heads() {
    const Sparse keys(36 * GIB), values(36 * GIB), q(12 * GIB), k(12 * GIB), v(12 * GIB), out(12 * GIB);
    for (const Shape &s : {Shape{2, 1, 700, 4, 2, 64, 0, 0, 1}, Shape{2, 20, 70, 4, 2, 64, 0, 30, 0}}) {
        const uint32_t seed = state();
        const Attention before(s);
        state() = seed;
        const Attention side(s);
        if (isobit_cpu_attention(&side.a)) return false;
        isobit_attention far = before.a;
        const int64_t rows = s.batch * s.tokens, heads = s.batch * s.kv_heads, apart = 12 * GIB / 4 / rows, row = s.dim * 4;
        const int64_t capacity = 36 * GIB / heads / row;
        const Sequences sequences(s.sequences(), capacity);
        far.sequences = sequences.arguments(), far.ldq = far.ldk = far.ldv = far.ldo = apart;
        far.held.keys = keys.floats(), far.held.values = values.floats(), far.out = out.floats();
        far.q = q.floats(), far.k = k.floats(), far.v = v.floats();
        copy_rows(q.bytes(), 4 * apart, before.q.bytes(), 4 * before.a.ldq, rows, row * s.heads);
        copy_rows(k.bytes(), 4 * apart, before.k.bytes(), 4 * before.a.ldk, rows, row * s.kv_heads);
        copy_rows(v.bytes(), 4 * apart, before.v.bytes(), 4 * before.a.ldv, rows, row * s.kv_heads);
        copy_rows(keys.bytes(), row * capacity, before.keys.bytes(), row * before.capacity, heads, row * s.past);
        copy_rows(values.bytes(), row * capacity, before.values.bytes(), row * before.capacity, heads, row * s.past);
        if (isobit_cpu_attention(&far)) return false;
        Values<float> near_out(side.out.size()), near_keys(side.keys.size()), near_values(side.values.size());
        copy_rows(near_out.bytes(), 4 * side.a.ldo, out.bytes(), 4 * apart, rows, row * s.heads);
        copy_rows(near_keys.bytes(), row * side.capacity, keys.bytes(), row * capacity, heads, row * side.capacity);
        copy_rows(near_values.bytes(), row * side.capacity, values.bytes(), row * capacity, heads, row * side.capacity);
        if (!near_out.same(side.out) || !near_keys.same(side.keys) || !near_values.same(side.values))
            return std::printf("%d tokens\n", int(s.tokens)), false;
    }
    return true;
}

// One new token behind twenty million, one of which, beyond 2^32 bytes, counts as much as all others together.
bool long_past() {
    constexpr int64_t dim = 64, period = 16 * 1021, past = 20 * 1000 * 1000 + 3, special = (1 << 24) + 12345, row = dim * 4;
    Values<uint8_t> old_keys(period * row), old_values(period * row);
    for (int64_t i = 0; i < period * dim; ++i) {
        const float key = uniform() / 4, value = uniform();
        std::memcpy(old_keys.bytes() + 4 * i, &key, 4), std::memcpy(old_values.bytes() + 4 * i, &value, 4);
    }
    const int64_t bytes = (past + 1) * row;
    const Repeated keys(old_keys, bytes), values(old_values, bytes);
    Values<float> q(dim), k(dim), v(dim), cos(dim), sin(dim), out(dim);
    fill(q), fill(k), fill(v), fill_with(cos, 1), fill_with(sin, 0);
    double size = 0;
    for (int64_t d = 0; d < dim; ++d) size += static_cast<double>(q[d]) * q[d];
    for (int64_t d = 0; d < dim; ++d)
        keys.floats()[special * dim + d] = q[d] * static_cast<float>(17 / size), values.floats()[special * dim + d] = 3;
    isobit_attention a{};
    const Sequences sequences({{1, past}}, past + 1);
    a.sequences = sequences.arguments(), a.heads = a.kv_heads = 1, a.dim = dim, a.of.scale = 1;
    a.ldq = a.ldk = a.ldv = a.ldo = dim, a.cos = cos.data(), a.sin = sin.data();
    a.q = q.data(), a.k = k.data(), a.v = v.data(), a.held.keys = keys.floats(), a.held.values = values.floats(), a.out = out.data();
    if (isobit_cpu_attention(&a)) return false;
    if (std::memcmp(keys.floats() + past * dim, k.data(), row) || std::memcmp(values.floats() + past * dim, v.data(), row))
        return std::puts("the new token"), false;
    std::vector<double> exact(dim, 0);
    double total = 0;
    const auto add = [&](int64_t at, double times) {
        double score = 0;
        for (int64_t d = 0; d < dim; ++d) score += static_cast<double>(q[d]) * keys.floats()[at * dim + d];
        total += times * std::exp(score);
        for (int64_t d = 0; d < dim; ++d) exact[static_cast<size_t>(d)] += times * std::exp(score) * values.floats()[at * dim + d];
    };
    for (int64_t at = 0; at < period; ++at) add(at, static_cast<double>((past - at + period - 1) / period - (special % period == at)));
    add(special, 1), add(past, 1);
    for (int64_t d = 0; d < dim; ++d)
        if (!(std::fabs(out[d] - exact[static_cast<size_t>(d)] / total) <= 1e-4))
            return std::printf("%g, not %g\n", double(out[d]), exact[static_cast<size_t>(d)] / total), false;
    return true;
}

const Check EACH[] = {{"rows far apart", far_rows}, {"heads far apart", far_heads}, {"many weights", many_weights}};
// What is above the instruction sets, or takes long.
const Check ONCE[] = {{"many weights of each kind", many_weights_of_each_kind}, {"many codes", many_codes}, {"a long past", long_past}};

}  // namespace

int main(int count, char **arguments) {
    return on_every_isa(count, arguments, [first = true](const std::string &isa) mutable {
        const bool good = run_all(isa, "far apart, and many", EACH) && (!first || run_all(isa, "many of each kind", ONCE));
        first = false;
        return good;
    });
}
