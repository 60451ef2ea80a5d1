#pragma once

#include "kernels/kernel.h"

namespace tmac::avx2 {

// Encoders of one token's activations, bit for bit those of the scalar reference.
void lut_ctor(const PrepareArgs& args);
void unsigned_lut_ctor(const PrepareArgs& args);  ///< entries + 128; where an activation is not finite, 0
void act_quant(const PrepareArgs& args);

// A register-only loop of int8 dot products. Returns the operations done; `result` starts and ends the sums.
int64_t dot_peak(int64_t rounds, int32_t* result);
int64_t dot_peak_vnni(int64_t rounds, int32_t* result);

extern const KernelTable qgemm_lut;
extern const KernelTable qgemm_lut_fast;
extern const KernelTable qgemm_mad;
extern const KernelTable qgemm_mad_vnni;
extern const KernelTable qgemm_trit;
extern const KernelTable qgemm_trit_vnni;
#ifdef TMAC_VNNI_EVEX
extern const KernelTable qgemm_mad_vnni_evex;
extern const KernelTable qgemm_trit_vnni_evex;
#endif

}  // namespace tmac::avx2
