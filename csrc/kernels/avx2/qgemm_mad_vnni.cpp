// The class `mad` by vpdpbusd in its VEX form: CPUs with AVX-VNNI and without AVX-512. A file of its own, because it
// has flags of its own.
#define TMAC_AVX2_VNNI

#include "kernels/avx2/mad_kernels.h"

namespace tmac::avx2 {
namespace {

constexpr uint32_t kFeatures = kAvx2 | kFma | kF16c | kAvxVnni;

constinit const Kernel rows[] = TMAC_MAD_ROWS(Vnni, "avx2_vnni", kFeatures);

}  // namespace

#ifdef TMAC_VNNI_EVEX
constinit const KernelTable qgemm_mad_vnni_evex = {rows, sizeof(rows) / sizeof(rows[0])};
#else
constinit const KernelTable qgemm_mad_vnni = {rows, sizeof(rows) / sizeof(rows[0])};
#endif

}  // namespace tmac::avx2
