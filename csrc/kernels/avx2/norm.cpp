#include "kernels/avx2/lanes.h"
#include "kernels/avx2/vector_ops.h"
#include "kernels/vector_norm.h"

namespace tmac::avx2 {

constinit const NormOps norm{rms_norm<Lanes>, layer_norm<Lanes>};

}  // namespace tmac::avx2
