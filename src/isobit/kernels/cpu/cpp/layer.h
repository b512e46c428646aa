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
// The same of what the arrays of its sequences say, for attention through this window (0: all). Behind the check above. Throws
// std::bad_alloc.
const char *problem(const isobit_sequences &s, int64_t window);

// What has been checked. Throws std::bad_alloc.
void attention(const isobit_attention &a);

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
    // sum = x + delta, y = norm(sum); delta, sum and y may be NULL.
    void (*norm)(const float *x, const float *delta, const float *weight, float eps, int64_t k, float *sum, float *y);
    void (*gate)(int32_t activation, const float *gate, const float *up, int64_t count, float *y);
    void (*exp)(const float *x, int64_t count, float *y);
    // Norm of a head (NULL: none), then the rotation; out may be x.
    void (*rotate)(const float *x, const float *weight, float eps, const float *cos, const float *sin, int64_t dim, float *out);
    int64_t (*padded_dim)(int64_t dim);
    // Stores one head's keys or values in a format of the cache that is not float32; scale of codes.
    void (*put_cached)(int32_t format, const float *x, int64_t dim, void *to, float *scale);
    void (*attend)(const isobit_attention &, const Piece &, const Partial &);
    // out = sum of parts[i].out * exp(parts[i].largest - overall) / sum of their totals, for one row.
    void (*merge)(const Partial *parts, int64_t count, int64_t row, int64_t dim, float *out);
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
