#include "kernels/avx2/mad_trits.h"

// The method `trit` by vpmaddubsw: every CPU with AVX2.

namespace tmac::avx2 {
namespace {

constinit const Kernel rows[] = {trit_row<Maddubs>("qgemm_trit_ternary_avx2", kAvx2 | kFma | kF16c)};

}  // namespace

constinit const KernelTable qgemm_trit = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx2
