#pragma once

#include "kernels/kernel.h"

namespace tmac::neon {

// Encoders of one token's activations, bit for bit those of the scalar reference.
void lut_ctor(const PrepareArgs& args);
void act_quant(const PrepareArgs& args);

// Loops of int8 dot products in registers (ops/dot_peak.h).
int64_t dot_peak(int64_t rounds, int32_t* result);
int64_t dot_peak_dotprod(int64_t rounds, int32_t* result);

extern const KernelTable qgemm_lut;
extern const KernelTable qgemm_lut_fast;
extern const KernelTable qgemm_mad;
extern const KernelTable qgemm_mad_dotprod;
extern const KernelTable qgemm_mad_i8mm;

}  // namespace tmac::neon
