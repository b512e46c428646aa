// What is made of linears: activations laid out for them, and rows of weights divided among threads.
#pragma once

#include <vector>

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

// Cuts rows of weights into pieces, and these into as many shares of neighbours as there are threads (pool.h): pieces become smaller towards the
// end of a share, so that threads end together. A row is so many bytes.
class Shares {
  public:
    explicit Shares(int64_t bytes);
    // How many rows the next piece has, of `left` that follow; `together` are not parted.
    int64_t rows(int64_t left, int64_t row_bytes, int64_t together);
    // Behind the last piece: where shares end.
    const std::vector<int64_t> &ends();

  private:
    int64_t bytes_, count_, done_ = 0, pieces_ = 0;
    std::vector<int64_t> ends_;
};

}  // namespace isobit
