#pragma once

#include "kernels/kernel.h"

namespace tmac::neon {

// Encoders of one token's activations, bit for bit those of the scalar reference.
void lut_ctor(const PrepareArgs& args);
void act_quant(const PrepareArgs& args);

extern const KernelTable qgemm_lut;
extern const KernelTable qgemm_lut_fast;
extern const KernelTable qgemm_mad;
extern const KernelTable qgemm_mad_dotprod;
extern const KernelTable qgemm_mad_i8mm;

}  // namespace tmac::neon
