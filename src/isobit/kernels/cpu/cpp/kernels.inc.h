// The kernels, written once over a vector of W 32-bit lanes and compiled for each instruction set by the isa_*.cpp files.
//
// The including file defines, in its own anonymous namespace: W; the vector types F (float) and I (int32_t) of W lanes; for each
// format a decoder with
//     bits      of a code
//     codes     of a block: what is decoded at a time
//     offset    what a decoded code is above its value
//     factor    a power of two that turns what is decoded into values
//     scaled    whether there are scales
//     power     a power of two that activations are to be multiplied by (with `factor`)
//     source(i) which code of a block the i-th decoded value is
//     block(const uint8_t *codes, F out[codes / W])
// and Int8, Int4 and E2m1, the steps of integer products (dot.inc.h, digits.inc.h); FUSES, whether there are fused multiply-adds, and then
// fused(a, b, acc) of vectors. Products contract to fused multiply-adds; sums are float32
// in a fixed order, so that a result depends neither on the number of threads nor on what the other rows of a call hold; nor, where
// activations are rounded, on how many there are (docs/numerics.md section 6).
#include "vector.inc.h"
#include "activations.inc.h"
#include "rows.inc.h"
#include "few.inc.h"
#include "dot.inc.h"
#include "digits.inc.h"
#include "many.inc.h"
#include "many_digits.inc.h"
#include "chains.inc.h"
#include "pairs.inc.h"

template <int zero, class Function>
inline auto with_int4(const Layout &l, Function f) {
    return l.wide ? f(DecodeWideInt4<zero>{}) : f(DecodePacked<4, zero>{});
}

// Calls `f` with the decoder of a format.
template <class Function>
inline auto with_decoder(int32_t format, const Layout &l, Function f) {
    switch (format) {
        case ISOBIT_F32: return f(DecodeF32{});
        case ISOBIT_BF16: return f(DecodeBf16{});
        case ISOBIT_F16: return f(DecodeF16{});
        case ISOBIT_E4M3FN: return f(DecodeE4m3{});
        case ISOBIT_E5M2: return f(DecodeE5m2{});
        case ISOBIT_INT8: return f(DecodeInt8{});
        case ISOBIT_INT4: return with_int4<8>(l, f);
        case ISOBIT_UINT4: return with_int4<0>(l, f);
        case ISOBIT_E2M1: return f(DecodeE2m1{});
        case ISOBIT_INT3: return f(DecodePacked<3, 4>{});
        default: return f(DecodePacked<2, 2>{});
    }
}

// Whether codes of 4 bits can be decoded in blocks of 8 for each lane: every lane then belongs to one group. Those of e2m1 always can.
inline bool is_wide(const isobit_linear &w) {
    if (bits_of(w.format) != 4) return false;
    return !w.group || w.group % (8 * W) == 0 || (w.group % 8 == 0 && 8 * W % w.group == 0);
}

inline Kind kind_of(const isobit_linear &w, bool many, bool wide, bool digits) {
    if (by_pairs<Int8>(w)) return Kind::PAIRS;
    const bool as_floats = w.activations == ISOBIT_ACT_NONE || w.activation_scales;
    if (digits && wide && as_floats && HasDigits<Int4>::value && (!many || by_many_digits(w))) return Kind::DIGITS;
    if (w.activations != ISOBIT_ACT_INT8 || w.activation_group) return Kind::FLOATS;
    if (w.format == ISOBIT_INT8 && !w.group) return Kind::INT8;
    // Within a group the sums must fit in 32 bits.
    if (w.format == ISOBIT_INT4 && wide && w.group && w.group <= 1 << 16) return Kind::INT4_INT8;
    return Kind::FLOATS;
}

constexpr int64_t LONGEST_OF_MANY = 1 << 17;  // int8 codes of a row: 128 * 127 times as much fits in 32 bits

// Up to so many rows codes are decoded for each few rows anew; beyond, once for all. Where the two take as long on Zen 4; `few`
// is what products with few rows are made of. With many rows, sums of int8 stay in 32 bits from end to end.
inline int64_t few_rows(const isobit_linear &w, Kind few) {
    switch (few) {
        case Kind::INT8: return w.k > LONGEST_OF_MANY ? INT64_MAX : W >= 16 ? 8 : 16;
        case Kind::INT4_INT8: return W >= 16 ? 24 : 64;
        case Kind::DIGITS: return by_many_digits(w) ? 12 : W >= 16 ? 64 : W >= 8 ? 40 : 20;
        case Kind::PAIRS: return 32;
        default: break;
    }
    if (W < 8 || bits_of(w.format) < 8) return 12;
    const int64_t cached = (int64_t{1} << 20) / w.k;  // rows of activations that stay in the second and third cache
    return smaller(W >= 16 ? 256 : 32, cached < 12 ? 12 : cached);
}

// Whether products with many rows add up in another order than those with few, where a row must give the same bits with both:
// then all rows are few. Formats of 8 bits and more have an order for both (many_chains).
inline bool only_few(const isobit_linear &w, Kind few) {
    if (!w.alike || bits_of(w.format) >= 8) return false;
    return few != Kind::INT4_INT8 || w.group % (8 * W);
}

Layout layout(const isobit_linear &w, int64_t m, bool digits) {
    Layout l{};
    l.wide = is_wide(w);
    l.kind = kind_of(w, false, l.wide, digits);
    l.many = m > few_rows(w, l.kind) && !only_few(w, l.kind);
    if (l.many) l.kind = kind_of(w, true, l.wide, digits);
    l.group = w.group ? w.group : w.k;
    l.groups = (w.k + l.group - 1) / l.group;
    l.one_scale = l.groups == 1;
    with_decoder(w.format, l, [&](auto d) {
        l.paired = l.kind == Kind::DIGITS && !l.many ? paired_lanes(l) : 0;
        l.block = d.codes * (l.kind != Kind::DIGITS ? 1 : w.format == ISOBIT_E2M1 ? vectors_of_block<E2m1>(l) : vectors_of_block<Int4>(l));
        l.shifted = w.zeros || d.offset;
        constexpr int of_lane = d.codes / W;
        const bool of_one_group = l.wide || (d.source(1) == of_lane && l.group % of_lane == 0 && l.block % l.group == 0);
        l.span = l.group < l.block && of_one_group ? l.block : l.group;
        l.lanes = static_cast<int>(l.group / of_lane);
        l.span_bytes = l.span * d.bits / 8;
    });
    l.per_span = l.one_scale ? 1 : l.span / l.group;
    l.spans = (w.k + l.span - 1) / l.span;
    l.padded_span = round_up(l.span, l.block);
    l.width = l.spans * l.padded_span;
    switch (l.kind) {
        case Kind::FLOATS: l.row_size = l.width * 4; break;
        case Kind::INT8: l.row_size = int8_row_size(w.k, l.many); break;
        case Kind::INT4_INT8: l.row_size = int4_row_size(l); break;
        case Kind::DIGITS: l.row_size = l.many ? many_digits_row_size(l) : digits_row_size(l); break;
        case Kind::PAIRS: l.row_size = pairs_row_size(l); break;
    }
    l.row_size = round_up(l.row_size, 64);
    l.rows = l.kind == Kind::PAIRS ? NR : 4;
    if (l.many) l.row_size |= 64;  // an odd number of lines: rows a power of two apart would share the places of a cache
    return l;
}

void arrange(const isobit_linear &w, const Layout &l, const float *values, const float *group_scales, void *out) {
    switch (l.kind) {
        case Kind::FLOATS:
            return with_decoder(w.format, l, [&](auto d) {
                arrange_floats<decltype(d)>(l, values, w.k, static_cast<float *>(out));
            });
        case Kind::INT8: return arrange_int8(l, values, w.k, out);
        case Kind::INT4_INT8: return arrange_int4(l, values, w.k, out);
        case Kind::DIGITS: {
            const int32_t offset = w.zeros ? 1 : w.format == ISOBIT_E2M1 ? E2m1::offset : Int4::offset;
            if (!l.many) return arrange_digits(l, values, w.k, offset, out);
            if (w.format == ISOBIT_E2M1) return arrange_many_digits<E2m1>(l, values, w.k, offset, out);
            return arrange_many_digits<Int4>(l, values, w.k, offset, out);
        }
        case Kind::PAIRS: return arrange_pairs(l, values, w.k, group_scales, out);
    }
}

void few(const isobit_linear &w, const Layout &l, const void *rows, const float *act_scales, int64_t m, int64_t begin,
         int64_t end, float *y, int64_t ldy) {
    switch (l.kind) {
        case Kind::FLOATS:
            return with_decoder(w.format, l, [&](auto d) {
                few_floats<decltype(d)>(w, l, static_cast<const float *>(rows), act_scales, m, begin, end, y, ldy);
            });
        case Kind::INT8: return few_int8(w, l, rows, act_scales, m, begin, end, y, ldy);
        case Kind::INT4_INT8: return few_int4(w, l, rows, act_scales, m, begin, end, y, ldy);
        case Kind::DIGITS:
            if (w.format == ISOBIT_E2M1) return few_digits<E2m1>(w, l, rows, act_scales, m, begin, end, y, ldy);
            return few_digits<Int4>(w, l, rows, act_scales, m, begin, end, y, ldy);
        case Kind::PAIRS: return few_pairs<Int8>(w, l, rows, m, begin, end, Output{w, act_scales, y, ldy});
    }
}

void many(const isobit_linear &w, const Layout &l, const void *rows, const float *act_scales, int64_t m, int64_t begin,
          int64_t end, float *y, int64_t ldy) {
    const Output out{w, act_scales, y, ldy};
    switch (l.kind) {
        case Kind::FLOATS:
            return with_decoder(w.format, l, [&](auto d) {
                typedef decltype(d) D;
                // What is rounded next must not depend on how many rows there are.
                if constexpr (D::bits >= 8)
                    if (w.alike || (w.activations && D::bits == 8)) return many_chains<D>(w, l, rows, m, begin, end, out);
                many_rows<FloatPanels<D>>(w, l, rows, m, begin, end, out);
            });
        case Kind::INT8: return many_rows<Int8Panels>(w, l, rows, m, begin, end, out);
        case Kind::INT4_INT8: return many_rows<Int4Panels>(w, l, rows, m, begin, end, out);
        case Kind::PAIRS: return many_pairs<Int8>(w, l, rows, m, begin, end, out);
        case Kind::DIGITS:
            if (w.format == ISOBIT_E2M1) return many_digits<E2m1>(w, l, rows, m, begin, end, out);
            return many_digits<Int4>(w, l, rows, m, begin, end, out);
    }
}
