// What is made of linears: activations laid out for them, and rows of weights divided among threads.
#pragma once

#include "kernels.h"

namespace isobit {

// The instruction set that a linear runs on: the one in use, or a better one for its groups.
const Isa &isa_for(const isobit_linear &w);

// Whether two linears of one input take the same rounded and laid out activations.
bool alike(const isobit_linear &a, const isobit_linear &b);

// Whether activations have one scale for a row, which is applied to what comes out.
inline bool scaled_apart(const isobit_linear &w) { return w.activations && !w.activation_group; }

// Rounds one row of activations and lays it out, [row_size]; its scale, if it is to be had.
void lay_out_row(const Isa &isa, const isobit_linear &w, const Layout &l, const float *from, float *scale, void *out);

// Rows of weights that a thread takes at a time when so many bytes are left: pieces become smaller towards the end, so that
// the threads end together.
int64_t rows_at_once(int64_t bytes_left, int64_t row_bytes, int64_t together);

}  // namespace isobit
