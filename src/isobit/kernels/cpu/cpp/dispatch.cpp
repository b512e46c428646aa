// The C interface: checks, the choice of the instruction set, and the division of work among threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "isobit_cpu.h"
#include "kernels.h"
#include "layer.h"
#include "linears.h"
#include "pool.h"

namespace isobit {

Buffer::~Buffer() { std::free(data_); }

void *Buffer::room(int64_t bytes) {
    if (bytes > size_) {
        std::free(data_);
        size_ = 0;
        data_ = std::aligned_alloc(64, static_cast<size_t>(round_up(bytes, 64)));
        if (!data_) throw std::bad_alloc();
        size_ = bytes;
    }
    return data_;
}

namespace {

const Isa *const ISAS[] = {
#ifdef ISOBIT_AVX512
    &avx512_isa,
#endif
#ifdef ISOBIT_AVX2
    &avx2_isa,
#endif
#ifdef ISOBIT_NEON
    &neon_isa,
#endif
    &portable_isa,
};

const Isa *best() {
    for (const Isa *isa : ISAS)
        if (isa->available()) return isa;
    return &portable_isa;
}

std::atomic<const Isa *> &current() {
    static std::atomic<const Isa *> isa{best()};
    return isa;
}

thread_local std::string error;

}  // namespace

int fail(const char *why) {
    error = why;
    return -1;
}

namespace {

constexpr int64_t LEAST_SHARE = 1 << 14, LEAST_PIECE = 1 << 16;  // bytes of codes: of a thread's share, and of what it takes at a time

// How activations that share a scale are rounded.
struct Rounding {
    int32_t activations, scales;
    float input_scale;
};

// Scale of n activations, and their rounded values; scale NaN and zeros if one of them is not finite.
float round_run(const Isa &isa, const Rounding &how, const float *x, int64_t n, float *out) {
    const float amax = isa.absmax(x, n);
    float scale = how.input_scale;
    if (!std::isfinite(amax)) scale = NAN;
    else if (how.scales == ISOBIT_SCALES_POWERS) scale = power_scale(how.activations, amax);
    else if (how.scales == ISOBIT_SCALES_UNDER) scale = scale_under(how.activations, amax, how.input_scale);
    else if (!scale) scale = activation_scale(how.activations, amax);
    isa.round(how.activations, x, n, scale, out);
    return scale;
}

// Rounds one row of activations; one scale for all is returned, scales by group go to group_scales or, if that is NULL, into the
// values.
float round_row(const Isa &isa, const isobit_linear &w, const float *x, float *out, float *group_scales) {
    const Rounding how{w.activations, w.activation_scales, w.input_scale};
    if (!w.activation_group) return round_run(isa, how, x, w.k, out);
    for (int64_t at = 0; at < w.k; at += w.activation_group) {
        const int64_t count = std::min<int64_t>(w.activation_group, w.k - at);
        const float scale = round_run(isa, how, x + at, count, out + at);
        if (group_scales) group_scales[at / w.activation_group] = scale;
        else for (int64_t k = at; k < at + count; ++k) out[k] *= scale;
    }
    return 1;
}

struct Rows {
    const void *laid;
    const float *scales;  // of the activations, or NULL
};

}  // namespace

void lay_out_row(const Isa &isa, const isobit_linear &w, const Layout &l, const float *from, float *scale, void *out) {
    static thread_local Buffer rounded;
    const bool apart = w.activation_group && l.kind == Kind::PAIRS;
    float *const values = w.activations ? rounded.floats(w.k + (apart ? l.groups : 0)) : nullptr;
    float *const group_scales = apart ? values + w.k : nullptr;
    if (values) {
        const float found = round_row(isa, w, from, values, group_scales);
        if (scale) *scale = found;
        from = values;
    }
    isa.arrange(w, l, from, group_scales, out);
}

namespace {

// Rounds and lays out all rows of activations.
Rows lay_out(const Isa &isa, const isobit_linear &w, const Layout &l, const float *x, int64_t m, int64_t ldx) {
    static thread_local Buffer laid, scales;
    uint8_t *rows = static_cast<uint8_t *>(laid.room(m * l.row_size));
    float *factors = scaled_apart(w) ? scales.floats(m) : nullptr;
    parallel(m, 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            lay_out_row(isa, w, l, x + row * ldx, factors ? factors + row : nullptr, rows + row * l.row_size);
    });
    return {rows, factors};
}

}  // namespace

bool alike(const isobit_linear &a, const isobit_linear &b) {
    return a.k == b.k && a.format == b.format && a.activations == b.activations && a.group == b.group &&
           a.activation_group == b.activation_group && a.input_scale == b.input_scale && !a.zeros == !b.zeros &&
           a.activation_scales == b.activation_scales && a.alike == b.alike;
}

namespace {

// Groups that neither are whole blocks of 16 lanes nor share them, such as int3's of 40, are decoded faster with 8: a row of
// copied tails costs more than half of the lanes.
const Isa &isa_for(const Isa &wanted, const isobit_linear &w) {
#if defined(ISOBIT_AVX512) && defined(ISOBIT_AVX2)
    const bool shared = bits_of(w.format) == 4 && w.group && 128 % w.group == 0;
    if (&wanted == &avx512_isa && w.group % 32 && w.group % 8 == 0 && bits_of(w.format) < 8 && !shared && avx2_isa.available()) return avx2_isa;
#endif
    (void)w;
    return wanted;
}

}  // namespace

const Isa &isa_for(const isobit_linear &w) { return isa_for(*current().load(), w); }

namespace {

struct Piece {
    const isobit_linear *w;
    int64_t begin, end;
    float *y;
    int64_t ldy;
};

// m rows, ldx apart.
struct Input {
    const float *x;
    int64_t ldx, m;
};

}  // namespace

Shares::Shares(int64_t bytes) : bytes_(bytes), count_(std::max<int64_t>(1, std::min<int64_t>(threads(), bytes / LEAST_SHARE))) {}

int64_t Shares::rows(int64_t left, int64_t row_bytes, int64_t together) {
    const auto end_of_share = [&] { return bytes_ / count_ * (static_cast<int64_t>(ends_.size()) + 1); };
    const int64_t bytes = end_of_share() - done_, piece = std::min(bytes, std::max(LEAST_PIECE, bytes / 2));
    const int64_t rows = std::min(left, std::max(together, piece / row_bytes / together * together));
    ++pieces_, done_ += rows * row_bytes;
    while (static_cast<int64_t>(ends_.size()) + 1 < count_ && done_ + together * row_bytes / 2 >= end_of_share()) ends_.push_back(pieces_);
    return rows;
}

const std::vector<int64_t> &Shares::ends() {
    ends_.push_back(pieces_);
    return ends_;
}

namespace {

// Linears of one input that take it laid out in the same way.
void run_rows(const Isa &isa, const isobit_linear *const *w, int64_t count, const Layout &l, const Input &in, float *const *y,
              const int64_t *ldy) {
    static thread_local std::vector<Piece> kept;
    const Rows rows = lay_out(isa, *w[0], l, in.x, in.m, in.ldx);
    std::vector<Piece> &pieces = kept;
    pieces.clear();
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; ++i) bytes += w[i]->n * w[i]->row_bytes;
    Shares shares(bytes);
    for (int64_t i = 0; i < count; ++i)
        for (int64_t n = 0, step; n < w[i]->n; n += step) {
            step = l.many ? std::min(isa.panel, w[i]->n - n) : shares.rows(w[i]->n - n, w[i]->row_bytes, l.rows);
            pieces.push_back({w[i], n, n + step, y[i], ldy[i]});
        }
    const auto run = [&](int64_t at) {
        const Piece &piece = pieces[static_cast<size_t>(at)];
        (l.many ? isa.many : isa.few)(*piece.w, l, rows.laid, rows.scales, in.m, piece.begin, piece.end, piece.y, piece.ldy);
    };
    if (!l.many) return parallel_shares(shares.ends(), run);
    parallel(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) run(at);
    });
}

// The same for some of the rows: brought together, and what comes out is put where it belongs.
void run_some(const Isa &isa, const isobit_linear *const *w, int64_t count, const Layout &l, const Input &in, const std::vector<int64_t> &rows,
              float *const *y, const int64_t *ldy) {
    const int64_t k = w[0]->k, m = static_cast<int64_t>(rows.size());
    std::vector<float *> apart;
    std::vector<int64_t> widths;
    int64_t size = m * k;
    for (int64_t i = 0; i < count; ++i) size += m * w[i]->n;
    Buffer memory;
    float *const x = memory.floats(size);
    float *next = x + m * k;
    for (int64_t i = 0; i < count; ++i) apart.push_back(next), widths.push_back(w[i]->n), next += m * w[i]->n;
    for (int64_t at = 0; at < m; ++at) std::memcpy(x + at * k, in.x + rows[static_cast<size_t>(at)] * in.ldx, static_cast<size_t>(k) * 4);
    run_rows(isa, w, count, l, {x, k, m}, apart.data(), widths.data());
    for (int64_t i = 0; i < count; ++i) {
        const int64_t n = w[i]->n;
        for (int64_t at = 0; at < m; ++at)
            std::memcpy(y[i] + rows[static_cast<size_t>(at)] * ldy[i], apart[static_cast<size_t>(i)] + at * n, static_cast<size_t>(n) * 4);
    }
}

// Rows that can be written in digits go so, and the others by floats. How a row goes, and in which order it is added up, depends on the row
// and on how many there are, never on what the others hold.
void run_digits(const Isa &isa, const isobit_linear *const *w, int64_t count, const Layout &l, const Input &in, float *const *y, const int64_t *ldy) {
    std::vector<uint8_t> even(static_cast<size_t>(in.m));
    parallel(in.m, 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) even[static_cast<size_t>(row)] = isa.even(l, in.x + row * in.ldx, w[0]->k);
    });
    std::vector<int64_t> rows[2];
    for (int64_t row = 0; row < in.m; ++row) rows[even[static_cast<size_t>(row)]].push_back(row);
    if (rows[0].empty()) return run_rows(isa, w, count, l, in, y, ldy);
    const Layout floats = isa.layout(*w[0], in.m, false);
    if (rows[1].empty()) return run_rows(isa, w, count, floats, in, y, ldy);
    run_some(isa, w, count, floats, in, rows[0], y, ldy);
    run_some(isa, w, count, l, in, rows[1], y, ldy);
}

void run_linears(const isobit_linear *const *w, int64_t count, const float *x, int64_t m, int64_t ldx, float *const *y,
                 const int64_t *ldy) {
    const Isa &wanted = *current().load();
    for (int64_t first = 0, last; first < count; first = last) {
        for (last = first + 1; last < count && alike(*w[first], *w[last]);) ++last;
        const Isa &isa = isa_for(wanted, *w[first]);
        const Layout l = isa.layout(*w[first], m, true);
        (l.kind == Kind::DIGITS ? run_digits : run_rows)(isa, w + first, last - first, l, {x, ldx, m}, y + first, ldy + first);
    }
}

// Codes of rounded values: the inverse of decoding, for tests and for kernels that keep codes.
uint8_t code_of(int32_t activations, float value) {
    if (activations == ISOBIT_ACT_INT8) return static_cast<uint8_t>(static_cast<int8_t>(value));
    const bool e4m3 = activations == ISOBIT_ACT_E4M3FN, e2m1 = activations == ISOBIT_ACT_E2M1;
    const int mantissa = e4m3 ? 3 : e2m1 ? 1 : 2, bias = e4m3 ? 7 : e2m1 ? 1 : 15;
    const uint8_t sign = !std::signbit(value) ? 0 : e2m1 ? 0x08 : 0x80;
    const float size = std::fabs(value);
    if (size == 0) return sign;
    int exponent;
    const float fraction = std::frexp(size, &exponent);  // size = fraction * 2^exponent, fraction in [0.5, 1)
    const int field = exponent - 1 + bias;
    if (field < 1) return sign | static_cast<uint8_t>(std::ldexp(size, bias - 1 + mantissa));
    return sign | static_cast<uint8_t>(field << mantissa) |
           static_cast<uint8_t>(std::ldexp(2 * fraction - 1, mantissa));
}

}  // namespace
}  // namespace isobit

using namespace isobit;

extern "C" {

#define ISOBIT_EXPORT __attribute__((visibility("default")))

ISOBIT_EXPORT const char *isobit_cpu_isas(void) {
    static const std::string names = [] {
        std::string all;
        for (const Isa *isa : ISAS)
            if (isa->available()) all += (all.empty() ? "" : ",") + std::string(isa->name);
        return all;
    }();
    return names.c_str();
}

ISOBIT_EXPORT int isobit_cpu_use_isa(const char *name) {
    const std::string wanted = name ? name : "", base = wanted.substr(0, wanted.find('-'));
    const int parts = wanted == base ? 2 : wanted == base + "-bf16" ? 1 : wanted == base + "-vnni" ? 0 : -1;
    for (const Isa *isa : ISAS)
        if (parts >= 0 && base == isa->name && isa->available() && (isa->use_parts || wanted == base)) {
            if (isa->use_parts) isa->use_parts(parts);
            current() = isa;
            return 0;
        }
    return fail("this machine or this build has no such instruction set");
}

ISOBIT_EXPORT const char *isobit_cpu_isa(void) { return current().load()->name; }

ISOBIT_EXPORT int isobit_cpu_set_threads(int count) {
    if (count < 1 || count > 4096) return fail("the number of threads must be from 1 to 4096");
    set_threads(count);
    return 0;
}

ISOBIT_EXPORT int isobit_cpu_threads(void) { return threads(); }

ISOBIT_EXPORT const char *isobit_cpu_error(void) { return error.c_str(); }

ISOBIT_EXPORT int isobit_cpu_linears(const isobit_linear *const *w, int64_t count, const float *x, int64_t m,
                                     int64_t ldx, float *const *y, const int64_t *ldy) {
    if (!w || !y || !ldy || count < 1) return fail("a null pointer, or no linears");
    for (int64_t i = 0; i < count; ++i) {
        if (!w[i]) return fail("a null pointer");
        if (const char *why = problem(*w[i], x, m, ldx, y[i], ldy[i])) return fail(why);
    }
    try {
        if (m > 0) run_linears(w, count, x, m, ldx, y, ldy);
        return 0;
    } catch (const std::exception &caught) {
        return fail(caught.what());
    }
}

ISOBIT_EXPORT int isobit_cpu_linear(const isobit_linear *w, const float *x, int64_t m, int64_t ldx, float *y,
                                    int64_t ldy) {
    return isobit_cpu_linears(&w, 1, x, m, ldx, &y, &ldy);
}

ISOBIT_EXPORT int isobit_cpu_quantize(int32_t activations, int32_t activation_scales, int64_t group, float input_scale, const float *x,
                                      int64_t m, int64_t k, uint8_t *codes, float *scales) {
    if (activations < ISOBIT_ACT_E4M3FN || activations > ISOBIT_ACT_E2M1) return fail("unknown activation format");
    if (activation_scales < ISOBIT_SCALES_FLOAT || activation_scales > ISOBIT_SCALES_UNDER) return fail("unknown scales of activations");
    if (activation_scales && !group) return fail("scales of few bits belong to groups of activations");
    if (!x || !codes || !scales || m < 0 || k < 1 || m > LARGEST / k || group < 0) return fail("an argument is out of range");
    if (!(input_scale >= 0) || !std::isfinite(input_scale) || (!input_scale && activation_scales == ISOBIT_SCALES_UNDER))
        return fail("a static scale is one positive number");
    const Rounding how{activations, activation_scales, input_scale};
    const int64_t run = group ? std::min(group, k) : k, runs = (k + run - 1) / run;
    Loose *const to = scales;
    try {
        std::vector<float> values(static_cast<size_t>(run));
        for (int64_t row = 0; row < m; ++row)
            for (int64_t g = 0; g < runs; ++g) {
                const int64_t at = row * k + g * run, count = std::min<int64_t>(run, k - g * run);
                to[row * runs + g] = round_run(*current().load(), how, x + at, count, values.data());
                for (int64_t i = 0; i < count; ++i) codes[at + i] = code_of(activations, values[i]);
            }
        return 0;
    } catch (const std::exception &caught) {
        return fail(caught.what());
    }
}

ISOBIT_EXPORT uint64_t isobit_cpu_read(const void *data, int64_t bytes) {
    if (!data || bytes < 0) return static_cast<uint64_t>(fail("an argument is out of range"));
    error.clear();
    try {
        std::atomic<uint64_t> total{0};
        const char *p = static_cast<const char *>(data);
        parallel(bytes, 1 << 20, [&](int64_t begin, int64_t end) { total += current().load()->read(p + begin, end - begin); });
        return total;
    } catch (const std::exception &caught) {
        return static_cast<uint64_t>(fail(caught.what()));
    }
}

}  // extern "C"
