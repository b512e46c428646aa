// The parts of a decoder layer beside its linears: what one instruction set offers, made by layer.inc.h and attention.inc.h.
#pragma once

#include <cmath>
#include <exception>

#include "kernels.h"

namespace isobit {

// Remembers why a call failed, for isobit_cpu_error(); returns -1.
int fail(const char *why);

// Why a linear or an attention with these arguments is refused; NULL if it is not. That of an attention follows no pointer.
const char *problem(const isobit_linear &w, const float *x, int64_t m, int64_t ldx, const float *y, int64_t ldy);
const char *problem(const isobit_attention &a);
const char *problem_of_sizes(const isobit_sequences &s);
// The same of latent attention, of one by itself and of a layer's: `value` dimensions of a head's value.
const char *problem(const isobit_latent_attention &a);
const char *problem(const isobit_latent &l, int64_t heads, int64_t value);
// The same of a cache whose two parts have so many dimensions.
const char *problem(const isobit_cached &c, int64_t first, int64_t second);
// How far back tokens see.
struct Sight {
    int64_t window, chunk;
    // The first position that a token sees.
    int64_t first(int64_t position) const {
        const int64_t begin = window && position + 1 > window ? position + 1 - window : 0, own = chunk ? position / chunk * chunk : 0;
        return own > begin ? own : begin;
    }
    bool operator==(const Sight &other) const { return window == other.window && chunk == other.chunk; }
};
inline Sight sight_of(const isobit_heads &of) { return {of.window, of.chunk}; }

// The same of what the arrays of its sequences say, for attentions that see so far. Behind the check above. Throws std::bad_alloc.
const char *problem(const isobit_sequences &s, const Sight *sights, int64_t count);

// How many numbers of a head are rotated: what a step has to have cosines and sines of.
inline int64_t rotated_of(const isobit_heads &of, int64_t dim) { return of.rotated ? of.rotated : dim; }

// Whether there is such an activation, and whether it goes with the limit.
const char *problem_of_gate(int32_t activation, float limit, bool has_up);
const char *problem(const isobit_norm &norm);

// Keys or values of a cache. A row is a head of a token.
struct Kept {
    void *numbers;
    float *scales;    // [rows], or NULL
    uint8_t *groups;  // [rows, groups_of(dim)], or NULL
    int64_t group;
    int32_t format, group_format;

    int64_t groups_of(int64_t dim) const { return group ? (dim - 1) / group + 1 : 0; }
    int64_t row_bytes(int64_t dim) const { return dim * bits_of(format) / 8; }
    uint8_t *row(int64_t number, int64_t dim) const { return static_cast<uint8_t *>(numbers) + number * row_bytes(dim); }
    uint8_t *groups_at(int64_t row, int64_t dim) const { return groups ? groups + row * groups_of(dim) : nullptr; }
    // What lies so many rows behind it.
    Kept from(int64_t rows, int64_t dim) const {
        return {row(rows, dim), scales ? scales + rows : nullptr, groups_at(rows, dim), group, format, group_format};
    }
};
inline Kept keys_of(const isobit_cached &c) { return {c.keys, c.key_scales, c.key_groups, c.group, c.format, c.group_format}; }
inline Kept values_of(const isobit_cached &c) { return {c.values, c.value_scales, c.value_groups, c.group, c.format, c.group_format}; }
inline isobit_cached together(const Kept &keys, const Kept &values) {
    return {keys.numbers, values.numbers, keys.scales, values.scales, keys.groups, values.groups, keys.group, keys.format, keys.group_format};
}

// What has been checked. Throws std::bad_alloc.
void attention(const isobit_attention &a);
void latent(const isobit_latent_attention &a);

// What an attention over latents has beside what an attention has: the rotated part. Queries in front of the latents are [heads, tokens,
// dim], and key-value heads are parts of the heads, which all read the same.
struct Latents {
    const float *turned;       // rotated parts of queries
    int64_t token, head;       // from one token's to the next one's, and from one head's
    int64_t rotated;
    Kept keys;                 // [blocks, block, rotated]
};
// An attention whose keys are stored already.
void attention(const isobit_attention &a, const Latents &l);

// Runs `body` and turns what it throws into an error code.
template <class Body>
int guarded(Body body) {
    try {
        return body();
    } catch (const std::exception &caught) {
        return fail(caught.what());
    }
}

constexpr int64_t LARGEST_HEAD = 512;  // dimensions of a head
constexpr int64_t KEYS = 64;           // keys that are attended to at a time: online softmax goes from one such block to the next

// A part of an attention: the query heads of one key-value head at some new tokens of one sequence, over some keys.
struct Piece {
    int64_t sequence, kv_head;
    int64_t row, tokens;  // the tokens among those of the call
    int64_t position;     // of the first one in its sequence
    int64_t begin, end;   // positions of the keys; begin is a multiple of KEYS
};

// Unnormalized output of a piece: rows are tokens by query heads of the group. Where no key was seen, largest is -inf.
struct Partial {
    float *out;               // [rows, padded_dim(dim)]
    float *largest, *total;   // [rows]: the largest score, and the sum of exp(score - largest)
};

struct LayerIsa {
    const char *name;  // that of the Isa
    // sum = x + factor * delta, y = norm(sum); delta, sum and y may be NULL, and without y the norm.
    void (*norm)(const isobit_norm *norm, const float *x, const float *delta, float factor, int64_t k, float *sum, float *y);
    void (*gate)(int32_t activation, float limit, const float *gate, const float *up, int64_t count, float *y);
    void (*exp)(const float *x, int64_t count, float *y);
    // What an RMS norm over k numbers multiplies them by.
    float (*rms_factor)(const float *x, float eps, int64_t k);
    // Norms and rotates a head. `weight`: the norm's, [dim], or NULL; `factor`: what rms_factor gave for all heads of the token, where
    // the norm is over them. cos NULL: no rotation. out may be x.
    void (*prepare)(const isobit_heads &of, const float *x, const float *weight, float factor, const float *cos, const float *sin, int64_t dim,
                    float *out);
    int64_t (*padded_dim)(int64_t dim);
    // Stores the numbers of a head of a token as a row, in a format that is not float32.
    void (*put_cached)(const Kept &to, const float *x, int64_t dim, int64_t row);
    void (*attend)(const isobit_attention &, const Piece &, const Partial &);
    void (*attend_latents)(const isobit_attention &, const Latents &, const Piece &, const Partial &);
    // out = sum of parts[i].out * exp(parts[i].largest - overall) / sum of their totals, for one row; `sink` is a score that takes part
    // (NULL: none).
    void (*merge)(const Partial *parts, int64_t count, int64_t row, int64_t dim, const float *sink, float *out);
};

// That of the instruction set in use.
const LayerIsa &current_layer();

extern const LayerIsa portable_layer;
#ifdef ISOBIT_AVX2
extern const LayerIsa avx2_layer;
#endif
#ifdef ISOBIT_AVX512
extern const LayerIsa avx512_layer;
#endif
#ifdef ISOBIT_NEON
extern const LayerIsa neon_layer;
#endif

}  // namespace isobit
