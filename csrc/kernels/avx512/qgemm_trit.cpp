#include "core/cpu_features.h"
#include "kernels/avx512/kernels.h"
#include "kernels/avx512/mad_panel.h"
#include "kernels/avx512/mad_small.h"
#include "kernels/avx512/mad_trits.h"

// Ternary weights at 1.6 bits times int8 activations, exact in int32: the templates of the class `mad` over codes that
// are looked up, five from a byte.

namespace tmac::avx512 {
namespace {

constexpr int32_t kLargestSmall = 16;  ///< tokens up to which unpacking in registers is faster than a panel

void qgemm(const QgemmArgs& args) {
    args.m <= kLargestSmall ? qgemm_small<Trits, 2>(args) : qgemm_panel<Trits, 2>(args);
}

constexpr uint8_t kBoth = (1U << static_cast<int>(Activation::group)) | (1U << static_cast<int>(Activation::token));
constexpr uint32_t kFeatures =
    kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vbmi | kAvx512vnni;

constinit const Kernel rows[] = {
    {"qgemm_trit_ternary_avx512_vbmi", 2, Codebook::ternary, kBoth, Method::trit, Layout::trits, bit_of(Layout::trits),
     kFeatures, qgemm, act_quant, kTokenBlock},
};

}  // namespace

constinit const KernelTable qgemm_trit = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx512
