#include "kernels/avx512/lanes.h"
#include "kernels/avx512/vector_ops.h"
#include "kernels/vector_norm.h"

namespace tmac::avx512 {

constinit const NormOps norm{rms_norm<Lanes>, layer_norm<Lanes>};

}  // namespace tmac::avx512
