// The parts of a decoder layer beside its linears: what one instruction set offers, made by layer.inc.h.
#pragma once

#include <cmath>

#include "kernels.h"

namespace isobit {

// Remembers why a call failed, for isobit_cpu_error(); returns -1.
int fail(const char *why);

// Why a linear or an attention with these arguments is refused; NULL if it is not.
const char *problem(const isobit_linear &w, const float *x, int64_t m, int64_t ldx, const float *y, int64_t ldy);
const char *problem(const isobit_attention &a);

constexpr int64_t LARGEST_HEAD = 512;  // dimensions of a head
constexpr int64_t KEYS = 64;           // keys of a block: online softmax goes from block to block

// A part of an attention: the query heads of one key-value head at some tokens, over some keys.
struct Piece {
    int64_t sequence, kv_head;
    int64_t first, tokens;  // tokens of this call
    int64_t begin, end;     // keys; begin is a multiple of KEYS
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
    void (*gate)(const float *gate, const float *up, int64_t count, float *y);
    void (*exp)(const float *x, int64_t count, float *y);
    // Norm of a head (NULL: none), then the rotation; out may be x.
    void (*rotate)(const float *x, const float *weight, float eps, const float *cos, const float *sin, int64_t dim, float *out);
    int64_t (*padded_dim)(int64_t dim);
    void (*attend)(const isobit_attention &, const Piece &, const Partial &);
    // out = sum of parts[i].out * exp(parts[i].largest - overall) / sum of their totals, for one row.
    void (*merge)(const Partial *parts, int64_t count, int64_t row, int64_t dim, float *out);
};

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
