// The C interface of isobit's CPU kernels. No dependence on PyTorch or Python; called through ctypes.
//
// Every function that can fail returns 0 on success and a negative number otherwise; isobit_cpu_error() then says why.
// Pointers need no alignment, but for those of isobit_sequences. Sizes are 64-bit. Nothing here keeps a pointer after it returns, and weights are read in
// place, so that a memory-mapped checkpoint needs no second copy.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The version of this interface. It goes up with every change of a structure, a constant, an argument or a meaning below, here
// and in kernels/cpu/library.py: a library that was left over from another version is then refused, and not called.
#define ISOBIT_CPU_ABI 4

// How weights are stored. Integer codes below 8 bits are one little-endian bit stream per row, offset binary, padded to
// 32-bit words: the pack-quantized layout of compressed-tensors.
enum isobit_format {
    ISOBIT_F32 = 0,
    ISOBIT_BF16 = 1,
    ISOBIT_F16 = 2,
    ISOBIT_E4M3FN = 3,
    ISOBIT_E5M2 = 4,
    ISOBIT_INT8 = 5,
    ISOBIT_INT4 = 6,   // signed, code + 8
    ISOBIT_UINT4 = 7,  // with a zero point for each scale
    ISOBIT_INT3 = 8,   // signed, code + 4
    ISOBIT_INT2 = 9,   // signed, code + 2
};

// How activations are rounded before the product; docs/numerics.md section 3.
enum isobit_activations {
    ISOBIT_ACT_NONE = 0,
    ISOBIT_ACT_E4M3FN = 1,
    ISOBIT_ACT_E5M2 = 2,
    ISOBIT_ACT_INT8 = 3,
};

// What a gate is passed through.
enum isobit_activation {
    ISOBIT_SILU = 0,
    ISOBIT_GELU_TANH = 1,  // x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
};

// One linear layer, y = x W^T + b. Codes, scales and zero points are read in place, as a checkpoint stores them.
typedef struct {
    int64_t n, k;               // W is [n, k]
    int32_t format;             // enum isobit_format
    int32_t activations;        // enum isobit_activations
    int32_t activation_group;   // activations that share a scale; 0: all k of a token
    float input_scale;          // static activation scale; 0: dynamic
    int64_t group;              // weights along k that share a scale; 0: all k
    int64_t block_rows;         // rows that share a scale; 1: each has its own; 0: one scale for the whole matrix
    int64_t row_bytes;          // distance of rows in `codes`
    int32_t scale_format;       // ISOBIT_F32, ISOBIT_BF16 or ISOBIT_F16
    int32_t alike;              // 1: a row gives the same bits for any number of rows, also where activations are not rounded
    const void *codes;
    const void *scales;         // [ceil(n / block_rows) or 1, ceil(k / group) or 1]; NULL for F32, BF16, F16
    const uint8_t *zeros;       // same shape, for UINT4, else NULL
    const float *bias;          // [n] or NULL
} isobit_linear;

int isobit_cpu_abi(void);
// Which instruction sets were compiled, best first, and by what compiler.
const char *isobit_cpu_built(void);
const char *isobit_cpu_compiler(void);
// Which instruction sets this machine and this build have, best first, e.g. "avx512,avx2,portable"; the first is in use.
const char *isobit_cpu_isas(void);
// Use this one from now on (tests run each of them). Fails if it cannot run here. "avx512-bf16" is AVX-512 as on CPUs without
// VBMI, "avx512-vnni" as on those without BF16 too.
int isobit_cpu_use_isa(const char *name);
const char *isobit_cpu_isa(void);
// Threads of the pool, the caller included; at least 1. The pool is made at the first parallel call.
int isobit_cpu_set_threads(int threads);
int isobit_cpu_threads(void);
// Why the last call on this thread failed.
const char *isobit_cpu_error(void);

// x: float32 [m, k], rows ldx apart; y: float32 [m, n], rows ldy apart. Any m.
int isobit_cpu_linear(const isobit_linear *w, const float *x, int64_t m, int64_t ldx, float *y, int64_t ldy);

// The same for several linears of one input, as q, k and v have it: y[i] = x W_i^T + b_i, rows ldy[i] apart. Activations are
// rounded and laid out once where the linears agree in format and groups.
int isobit_cpu_linears(const isobit_linear *const *w, int64_t count, const float *x, int64_t m, int64_t ldx,
                       float *const *y, const int64_t *ldy);

// Rounds activations by the law: codes as bytes [m, k] (int8 two's complement), scales [m, k / group or 1].
int isobit_cpu_quantize(int32_t activations, int64_t group, float input_scale, const float *x, int64_t m, int64_t k,
                        uint8_t *codes, float *scales);

// 1 if a code of a matrix of 8-bit floats is no finite number, which the linears do not decode; 0 if all are numbers.
int isobit_cpu_has_nan(int32_t format, const void *codes, int64_t rows, int64_t row_bytes, int64_t k);

// Reads all bytes with all threads of the pool, as fast as the memory gives them, and returns a digest of them, which is
// there so that the reading cannot be left out. All bits are set and isobit_cpu_error() says why when it fails; after a
// digest that one is empty.
uint64_t isobit_cpu_read(const void *data, int64_t bytes);

// ---- the rest of a decoder layer; float32 throughout, sums in an order that depends on shapes only ----

// sum = x + delta, y = sum / sqrt(mean(sum^2) + eps) * weight; rows of length k. Without delta (NULL) the norm of x, without
// y (NULL) only the sum. sum may be x or delta, y may be x.
int isobit_cpu_rms_norm(const float *x, const float *delta, const float *weight, float eps, int64_t rows, int64_t k,
                        float *sum, float *y);
// y = activation(gate) * up, enum isobit_activation; rows of gate and up ldx apart, of y k.
int isobit_cpu_gate(int32_t activation, const float *gate, const float *up, int64_t rows, int64_t k, int64_t ldx, float *y);
// y = exp(x), as the functions above and below compute it.
int isobit_cpu_exp(const float *x, int64_t count, float *y);

// New tokens of several sequences, one sequence behind the other, and where a cache keeps their keys and values: in blocks,
// [blocks, kv_heads, block, dim] for each layer. A cache that has each sequence in one piece has one block for each.
typedef struct {
    int64_t count, tokens;  // sequences, and new tokens of all of them
    const int32_t *starts;  // [count + 1]: sequence b has new tokens starts[b] to starts[b + 1] - 1; starts[count] is `tokens`
    const int32_t *lengths; // [count]: tokens of each, its new ones included, which are its last. 0: its new tokens are padding
    const int32_t *table;   // [count, table_stride]: position p of sequence b is in block table[b, p / block] at place p % block;
                            // blocks before what a window shows are not looked at
    int64_t table_stride;
    const int64_t *slots;   // [tokens]: where each new token is stored, number of its block * block + place; -1: padding
    int64_t block, blocks;  // tokens of a block, a multiple of 64 unless each sequence fits into one; blocks of the cache
} isobit_sequences;

// Causal grouped-query attention over a cache, and what comes before it: norm of each head of queries and keys, rotation of
// halves, and storing keys and values. What a token gives does not depend on what is computed with it or on where the cache keeps
// its sequence, to the bit. Padding is not stored, and gives zeros.
typedef struct {
    isobit_sequences sequences;
    int64_t heads, kv_heads, dim;
    int64_t window;               // latest tokens that a token sees, itself included; 0: all
    int64_t ldq, ldk, ldv, ldo;   // distances of tokens in q, k, v and out
    float scale;                  // what scores are multiplied by
    float softcap;                // they then become softcap * tanh(score / softcap); 0: they stay
    float eps;
    const float *cos, *sin;       // [tokens, dim]
    const float *q_norm, *k_norm; // [dim], or both NULL
    float *q;                     // [tokens, heads, dim]; comes out normed and rotated
    const float *k, *v;           // [tokens, kv_heads, dim]
    void *keys, *values;          // [blocks, kv_heads, block, dim]
    float *key_scales, *value_scales;  // [blocks, kv_heads, block] of codes of 8 bits, else NULL
    float *out;                   // [tokens, heads, dim]
    int32_t cache_format;         // enum isobit_format of keys and values, up to ISOBIT_INT8
} isobit_attention;

int isobit_cpu_attention(const isobit_attention *a);

// A decoder layer: x += o(attention(q, k, v of norm(x))), x += down(activation(gate) * up of norm(x)).
typedef struct {
    const isobit_linear *q, *k, *v, *o, *gate, *up, *down;
    const float *input_norm, *post_norm;       // [hidden]: in front of the attention and of the MLP
    const float *after_attention, *after_mlp;  // [hidden]: norms of what is added to x; NULL: it is added as it is
    const float *q_norm, *k_norm;              // [dim], or both NULL
    int64_t heads, kv_heads, dim;
    int64_t window;                            // see isobit_attention
    float scale, softcap;                      // see isobit_attention
    float eps;                                 // of all norms
    int32_t activation;                        // enum isobit_activation
} isobit_layer;

// What the layers share in one call; the names as in isobit_attention.
typedef struct {
    isobit_sequences sequences;
    const float *cos, *sin;   // [tokens, dim]
    void *keys, *values;      // those of the first layer
    float *key_scales, *value_scales;
    int64_t cache_stride;     // values from a layer's keys to the next one's; 0: all use the same memory
    int32_t cache_format;
} isobit_step;

// x: float32 [tokens, hidden], contiguous; becomes what the last layer leaves. The same calls as above in the same
// order, so the same bits; in one call, because between short kernels an interpreter costs more than they do. All layers are
// looked at first: where one is refused, nothing has been written.
int isobit_cpu_layers(const isobit_layer *layers, int64_t count, const isobit_step *step, float *x);

#ifdef __cplusplus
}
#endif
