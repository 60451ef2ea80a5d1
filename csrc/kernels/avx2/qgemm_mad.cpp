#include "kernels/avx2/mad_kernels.h"

// The class `mad` by vpmaddubsw: every CPU with AVX2.

namespace tmac::avx2 {
namespace {

constinit const Kernel rows[] = TMAC_MAD_ROWS(Maddubs, "avx2", kAvx2 | kFma | kF16c);

}  // namespace

constinit const KernelTable qgemm_mad = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx2
