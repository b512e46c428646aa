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
#define ISOBIT_CPU_ABI 9

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
    ISOBIT_E2M1 = 10,  // the codes as they are; groups of 8 to 64 codes, a power of two, or of a multiple of 128
    ISOBIT_E8M0 = 11,  // powers of two: for scales alone
};

// How a number above others stands to them, or scales of activations are chosen.
enum isobit_over {
    ISOBIT_ALONE = 0,       // there is none
    ISOBIT_MULTIPLIES = 1,  // a scale is the product of both, rounded to float32
    ISOBIT_DIVIDES = 2,     // a scale is the lower one divided by the one above, rounded to float32
};

// How activations are rounded before the product; docs/numerics.md section 3.
enum isobit_activations {
    ISOBIT_ACT_NONE = 0,
    ISOBIT_ACT_E4M3FN = 1,
    ISOBIT_ACT_E5M2 = 2,
    ISOBIT_ACT_INT8 = 3,
    ISOBIT_ACT_E2M1 = 4,
};

// What the scales of groups of activations are; docs/numerics.md section 3.
enum isobit_activation_scales {
    ISOBIT_SCALES_FLOAT = 0,
    ISOBIT_SCALES_POWERS = 1,  // powers of two
    ISOBIT_SCALES_UNDER = 2,   // e4m3fn divided by input_scale
};

// What a gate is passed through, or what stands in its place.
enum isobit_activation {
    ISOBIT_SILU = 0,
    ISOBIT_GELU_TANH = 1,  // x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
    ISOBIT_GELU = 2,       // x * (1 + erf(x / sqrt(2))) / 2
    ISOBIT_RELU2 = 3,      // max(x, 0)^2
};

// What norms divide by; both have a weight, and a bias or none.
enum isobit_norm_kind {
    ISOBIT_RMS = 0,    // sqrt(mean(x^2) + eps)
    ISOBIT_LAYER = 1,  // sqrt(mean((x - mean(x))^2) + eps), of x without its mean
};

// Norms of queries and keys.
enum isobit_qk_norm {
    ISOBIT_QK_NONE = 0,
    ISOBIT_QK_HEAD = 1,         // RMS over each head, weights [dim], in front of the rotation
    ISOBIT_QK_HEAD_BEHIND = 2,  // the same behind it
    ISOBIT_QK_WIDTH = 3,        // RMS over all heads of a token, weights [heads, dim] and [kv_heads, dim], in front of it
};

// One linear layer, y = x W^T + b. Codes, scales and zero points are read in place, as a checkpoint stores them.
typedef struct {
    int64_t n, k;               // W is [n, k]
    int32_t format;             // enum isobit_format
    int32_t activations;        // enum isobit_activations
    int32_t activation_group;   // activations that share a scale; 0: all k of a token
    float input_scale;          // static activation scale, or what those of groups stand under; 0: dynamic
    int64_t group;              // weights along k that share a scale; 0: all k
    int64_t block_rows;         // rows that share a scale; 1: each has its own; 0: one scale for the whole matrix
    int64_t row_bytes;          // distance of rows in `codes`
    int32_t scale_format;       // ISOBIT_F32, ISOBIT_BF16, ISOBIT_F16; of groups also ISOBIT_E8M0 or ISOBIT_E4M3FN, without NaN
    int32_t alike;              // 1: a row gives the same bits for any number of rows, also where activations are not rounded
    const void *codes;
    const void *scales;         // [ceil(n / block_rows) or 1, ceil(k / group) or 1]; NULL for F32, BF16, F16
    const uint8_t *zeros;       // same shape, for UINT4, else NULL
    const float *bias;          // [n] or NULL
    const float *over;          // the numbers above the scales: [n], or one for all rows; NULL: there are none
    int32_t over_rule;          // enum isobit_over
    int32_t over_each;          // 1: each row has its own
    int32_t activation_scales;  // enum isobit_activation_scales
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

// Rounds activations by the law: codes as bytes [m, k] (int8 two's complement), scales [m, k / group or 1]. activation_scales: enum
// isobit_activation_scales.
int isobit_cpu_quantize(int32_t activations, int32_t activation_scales, int64_t group, float input_scale, const float *x, int64_t m,
                        int64_t k, uint8_t *codes, float *scales);

// 1 if a code of a matrix of 8-bit floats is no finite number, which the linears do not decode; 0 if all are numbers.
int isobit_cpu_has_nan(int32_t format, const void *codes, int64_t rows, int64_t row_bytes, int64_t k);

// Reads all bytes with all threads of the pool, as fast as the memory gives them, and returns a digest of them, which is
// there so that the reading cannot be left out. All bits are set and isobit_cpu_error() says why when it fails; after a
// digest that one is empty.
uint64_t isobit_cpu_read(const void *data, int64_t bytes);

// ---- the rest of a decoder layer; float32 throughout, sums in an order that depends on shapes only ----

// What a norm is. Without a weight it is none.
typedef struct {
    const float *weight, *bias;  // [k]; bias NULL: none
    float eps;
    int32_t kind;                // enum isobit_norm_kind
} isobit_norm;

// sum = x + factor * delta, y = norm(sum); rows of length k. Without delta (NULL) the norm of x, without y (NULL) only the sum, and
// norm may be NULL. sum may be x or delta, y may be x.
int isobit_cpu_norm(const isobit_norm *norm, const float *x, const float *delta, float factor, int64_t rows, int64_t k, float *sum,
                    float *y);
// y = activation(gate) * up, enum isobit_activation; up NULL: y = activation(gate). Rows of gate and up ldx apart, of y k. With a limit
// other than 0 (then with up and ISOBIT_SILU): g = min(gate, limit), u = up within -limit and limit, y = (u + 1) * g / (1 + exp(-1.702 g)).
int isobit_cpu_gate(int32_t activation, float limit, const float *gate, const float *up, int64_t rows, int64_t k, int64_t ldx, float *y);
// y *= 1 / (1 + exp(-(x . weight))), row by row: x [rows, k] by weight [k], y [rows, n].
int isobit_cpu_gate_by(const float *x, const float *weight, int64_t rows, int64_t k, float *y, int64_t n);
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

// What a cache keeps of keys and values, or of latents and rotated keys, which have a number of dimensions `dim` each. Of plain numbers
// (up to ISOBIT_F16) there are no scales; codes of 8 bits without groups have one of float32 for each token and head; codes ISOBIT_E4M3FN
// and ISOBIT_E2M1 may have scales of groups, either powers of two by themselves, or e4m3fn with one of float32 above them.
typedef struct {
    void *keys, *values;                   // [blocks, kv_heads, block, dim]; ISOBIT_E2M1: dim / 2 bytes, number d in the low half of byte d,
                                           // number d + dim / 2 in its high half
    float *key_scales, *value_scales;      // [blocks, kv_heads, block], or both NULL
    uint8_t *key_groups, *value_groups;    // [blocks, kv_heads, block, ceil(dim / group)], or both NULL
    int64_t group;                         // numbers that share a scale of those: a multiple of 16; 0: there are none
    int32_t format;                        // enum isobit_format of what is kept
    int32_t group_format;                  // ISOBIT_E8M0 or ISOBIT_E4M3FN; without groups it says nothing
} isobit_cached;

// What an attention is beside the sizes of its heads. All zero: every token sees all before it, no norms, whole heads are rotated by
// halves.
typedef struct {
    int64_t window;                // latest tokens that a token sees, itself included; 0: all
    int64_t chunk;                 // tokens of a chunk: a token sees none of an earlier one; 0: all
    int64_t rotated;               // dimensions of a head that are rotated, the first ones, an even number; 0: all
    float scale;                   // what scores are multiplied by
    float softcap;                 // they then become softcap * tanh(score / softcap); 0: they stay
    float eps;                     // of the norms of queries and keys
    int32_t qk_norm;               // enum isobit_qk_norm
    int32_t interleaved;           // 1: dimensions 0 and 1, 2 and 3, ... are rotated together; 0: those of both halves
    const float *q_norm, *k_norm;  // as qk_norm says, or both NULL
    const float *sinks;            // [heads]: scores that take part in the softmax and give nothing, as they are; NULL: none
} isobit_heads;

// Causal grouped-query attention over a cache, and what comes before it: norms of queries and keys, their rotation,
// and storing keys and values. What a token gives does not depend on what is computed with it or on where the cache keeps
// its sequence, to the bit. Padding is not stored, and gives zeros.
typedef struct {
    isobit_sequences sequences;
    isobit_heads of;
    int64_t heads, kv_heads, dim;
    int64_t ldq, ldk, ldv, ldo;   // distances of tokens in q, k, v and out
    const float *cos, *sin;       // [tokens, rotated]: of a pair i at i and, by halves, of its second dimension at rotated / 2 + i;
                                  // both NULL: nothing is rotated
    const float *factors;         // [tokens]: what the scores of a token are multiplied by besides; NULL: nothing
    float *q;                     // [tokens, heads, dim]; comes out normed and rotated
    const float *k, *v;           // [tokens, kv_heads, dim]
    isobit_cached held;
    float *out;                   // [tokens, heads, dim]
} isobit_attention;

int isobit_cpu_attention(const isobit_attention *a);

// ---- mixtures of experts ----

// The matrices [n, k] that experts have in one role, one below the other.
typedef struct {
    isobit_linear of;           // the first one's; its bias is [experts, n], and block_rows is not 0
    int64_t experts;
    int64_t stride;             // rows of codes from one to the next: n or more, whole blocks of rows
    const float *input_scales;  // [experts]: static scales of what each takes, in place of input_scale; NULL: they share it
} isobit_grouped;

// What the experts of a layer are: down(activation(gate(x)) * up(x)).
typedef struct {
    isobit_grouped gate, up, down;
    float limit;          // see isobit_cpu_gate
    int32_t activation;   // enum isobit_activation
    int32_t on_input;     // 1: a token's weight multiplies what goes into an expert, 0: what comes out
} isobit_experts;

// y[t] = sum over a of weights[t, a] * expert ids[t, a] (x[t]), a from 0 on, in float32. x: [m, hidden], rows ldx apart; ids and weights
// [m, active]; y: [m, hidden], contiguous. What goes into gate and up is rounded once for all experts of a token, unless each is given
// something else. inner: what goes into down, [m * active, inner], in any order; NULL if nobody wants it. A token gives the same bits
// whatever is computed with it where its linears do (docs/numerics.md, section 6).
int isobit_cpu_experts(const isobit_experts *e, const float *x, int64_t m, int64_t ldx, const int32_t *ids, const float *weights,
                       int64_t active, float *y, float *inner);

enum isobit_scores {
    ISOBIT_SOFTMAX = 0,
    ISOBIT_SIGMOID = 1,
    ISOBIT_SOFTMAX_BEHIND = 2,  // the logits; their softmax over the experts that were chosen is then what they weigh
    ISOBIT_SPARSEMIXER = 3,     // the logits; an expert weighs its softmax over those not chosen in front of it and not too far below it
};

// Which experts a token goes to. Of equal scores the lower number is chosen, and stands in front.
typedef struct {
    const isobit_linear *weight;    // [experts, hidden], float32; with or without bias
    const float *correction;        // [experts]: added to scores for the choice, not for the weights; NULL: nothing
    int64_t active;                 // experts of a token
    int64_t groups, active_groups;  // experts are in so many groups, of which the best so many take part
    float scale;                    // what weights are multiplied by
    float least_sum;                // their sum is taken as this at least
    int32_t scores;                 // enum isobit_scores
    int32_t best_two;               // 1: a group is as good as its two best experts together; 0: as its best
    int32_t renormalize;            // 1: weights are divided by their sum
    float tolerance;                // sparsemixer: (own - other) / max(|other|, own) of logits above this is too far
} isobit_router;

// ids, weights: [m, active], the best expert first. x: [m, hidden], rows ldx apart.
int isobit_cpu_route(const isobit_router *r, const float *x, int64_t m, int64_t ldx, int32_t *ids, float *weights);

// ---- latent attention ----

// What a latent attention (MLA) is. A head's query has dimensions without a position in front of those that are rotated. The cache keeps of
// a token the normed latent of `rank` numbers and one rotated part of a key, which all heads share.
typedef struct {
    const isobit_linear *q_a;  // of a layer: [low, hidden], whose norm the layer's q takes; NULL: q takes what the layer reads
    isobit_norm q_norm;        // [low]
    isobit_norm kv_norm;       // [rank]
    isobit_grouped keys;       // a matrix [rank, plain] of each head: takes queries to latents; nothing is rounded for it
    isobit_grouped values;     // a matrix [value, rank] of each head: takes what is found in latents to its values
    int64_t plain, rotated;    // dimensions of a query without a position and with one
} isobit_latent;

// Causal latent attention over a cache of latents, and what comes before it: norms of latents, rotation, storing. What a token gives does
// not depend on what is computed with it or on where the cache keeps its sequence, to the bit. Padding is not stored, and gives zeros.
typedef struct {
    isobit_sequences sequences;
    const isobit_latent *of;
    int64_t heads, value;
    int64_t ldkv, ldo;            // distances of tokens in kv and out
    const float *cos, *sin;       // [tokens, rotated], by halves
    float *q;                     // [tokens, heads, plain + rotated], contiguous; comes out rotated
    const float *kv;              // [tokens, rank + rotated]: latents in front of their norm, and keys in front of their rotation
    isobit_cached held;           // of one head: as keys the latents, as values the rotated keys
    float *out;                   // [tokens, heads, value]
    float scale;                  // what scores are multiplied by
    int32_t interleaved;          // 1: dimensions 0 and 1, 2 and 3, ... of what comes in are rotated together; they are kept as halves
} isobit_latent_attention;

int isobit_cpu_latent(const isobit_latent_attention *a);

// An MLP that is a mixture.
typedef struct {
    isobit_router router;
    isobit_experts experts;
    const float *shared_gate;  // [hidden]: see isobit_cpu_gate_by, of what the layer's own MLP gives; NULL: it is added as it is
} isobit_mixture;

// A decoder layer. With n1, n2 its norms in front (each the identity where it has no weight), m1, m2 those behind:
//     x += factor * m1(o(attention(q, k, v of n1(x)))), x += factor * m2(mlp(n2(x)));
// side by side, both of the same x: x += factor * m1(o(attention(... n1(x)))) + factor * m2(mlp(n1(x))), added in this order.
// mlp(x) = down(activation(gate(x)) * up(x)); without a gate (NULL) down(activation(up(x))). With a mixture: what its experts give,
// and behind that the MLP, if there is one (up NULL: there is none).
typedef struct {
    const isobit_linear *q, *k, *v, *o, *gate, *up, *down;
    isobit_norm before_attention, before_mlp, after_attention, after_mlp;  // weights [hidden]
    isobit_heads of;
    int64_t heads, kv_heads, dim;
    const isobit_mixture *mixture;  // or NULL
    int64_t places;       // which of the step's
    float factor;         // what both parts' results are multiplied by
    float limit;          // see isobit_cpu_gate
    int32_t activation;   // enum isobit_activation
    int32_t side_by_side;
    const isobit_latent *latent;  // NULL: none. Else k is [rank + rotated, hidden], v NULL, kv_heads 1, dim the rank, and of `of` only scale
                                  // and interleaved count
} isobit_layer;

// What attentions of one kind are told of the positions of a step's tokens; as in isobit_attention.
typedef struct {
    const float *cos, *sin;   // [tokens, rotated], or both NULL
    const float *factors;     // [tokens], or NULL
    int64_t rotated;          // what a layer that uses these rotates of its heads
} isobit_places;

// What the layers share in one call; the names as in isobit_attention.
typedef struct {
    isobit_sequences sequences;
    const isobit_places *places;
    int64_t kinds_of_places;
    isobit_cached held;           // that of the first layer
    int64_t cache_stride;         // heads of tokens from a layer's keys to the next one's, and so of all that is kept; 0: all use the same memory
} isobit_step;

// x: float32 [tokens, hidden], contiguous; becomes what the last layer leaves. The same calls as above in the same
// order, so the same bits; in one call, because between short kernels an interpreter costs more than they do. All layers are
// looked at first: where one is refused, nothing has been written.
int isobit_cpu_layers(const isobit_layer *layers, int64_t count, const isobit_step *step, float *x);

#ifdef __cplusplus
}
#endif
