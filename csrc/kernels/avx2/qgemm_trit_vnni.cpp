// The method `trit` by vpdpbusd in its VEX form, as in qgemm_mad_vnni.cpp.
#define TMAC_AVX2_VNNI

#include "kernels/avx2/mad_trits.h"

namespace tmac::avx2 {
namespace {

constinit const Kernel rows[] = {trit_row<Vnni>("qgemm_trit_ternary_avx2_vnni", kAvx2 | kFma | kF16c | kAvxVnni)};

}  // namespace

#ifdef TMAC_VNNI_EVEX
constinit const KernelTable qgemm_trit_vnni_evex = {rows, sizeof(rows) / sizeof(rows[0])};
#else
constinit const KernelTable qgemm_trit_vnni = {rows, sizeof(rows) / sizeof(rows[0])};
#endif

}  // namespace tmac::avx2
