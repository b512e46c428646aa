// What is wrong with a linear that comes through the C interface.
#include <cmath>

#include "isobit_cpu.h"
#include "kernels.h"
#include "layer.h"

namespace isobit {

const char *problem(const isobit_linear &w, const float *x, int64_t m, int64_t ldx, const float *y, int64_t ldy) {
    const int bits = bits_of(w.format);
    if (!bits) return "unknown format";
    if (w.n < 1 || w.k < 1 || m < 0) return "sizes must be positive";
    if (w.n > LARGEST / w.k || m > LARGEST / w.k || m > LARGEST / w.n || w.group > LARGEST) return "sizes overflow";
    if (!w.codes || !x || !y) return "a null pointer";
    if (ldx < w.k || ldy < w.n) return "rows overlap: a stride is shorter than a row";
    if (w.row_bytes < (w.k * bits + 7) / 8) return "row_bytes is shorter than a row of codes";
    if (w.row_bytes > FARTHEST / w.n || (m && (ldx > FARTHEST / m || ldy > FARTHEST / m))) return "sizes overflow";
    if (w.group < 0 || (w.group && w.group * bits % 8)) return "a group does not end at a byte";
    if (w.block_rows < 0) return "block_rows is negative";
    if (bits > 8 && w.scales) return "weights of 16 and 32 bits have no scales";
    if (w.scales && !scale_bytes(w.scale_format)) return "scales are float32, bfloat16, float16, e8m0 or e4m3fn";
    if (w.scales && scale_bytes(w.scale_format) == 1 && !(w.group && w.block_rows == 1)) return "scales of 8 bits belong to groups";
    if (w.format == ISOBIT_E2M1 && w.group && w.group % 128 && !(w.group >= 8 && 128 % w.group == 0))
        return "groups of e2m1 are of 8, 16, 32 or 64 codes, or of a multiple of 128";
    if (w.over_rule < ISOBIT_ALONE || w.over_rule > ISOBIT_DIVIDES || (w.over_rule != ISOBIT_ALONE) != (w.over != nullptr))
        return "what stands above the scales needs a rule, and a rule something above";
    if (w.over && !(w.scales && w.group && w.block_rows == 1)) return "what stands above scales belongs to those of groups";
    if (bits <= 8 && !w.scales) return "the scales are missing";
    if ((w.format == ISOBIT_UINT4) != (w.zeros != nullptr)) return "zero points belong to uint4, and to nothing else";
    if (w.activations < ISOBIT_ACT_NONE || w.activations > ISOBIT_ACT_E2M1) return "unknown activation format";
    if (w.activation_scales < ISOBIT_SCALES_FLOAT || w.activation_scales > ISOBIT_SCALES_UNDER) return "unknown scales of activations";
    if (w.activation_scales && !(w.activations && w.activation_group)) return "scales of few bits belong to groups of activations";
    if (w.activations != ISOBIT_ACT_NONE && bits > 8) return "activations are rounded only together with weights";
    if (w.activation_group && w.activation_group != w.group) return "activation groups must be those of the weights";
    const bool stands_above = w.activation_scales == ISOBIT_SCALES_UNDER;
    if (!(w.input_scale >= 0) || !std::isfinite(w.input_scale) || (w.input_scale && w.activation_group && !stands_above) || (!w.input_scale && stands_above))
        return "a static scale is one positive number";
    return nullptr;
}

}  // namespace isobit
