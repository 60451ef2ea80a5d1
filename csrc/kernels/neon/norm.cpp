#include "kernels/neon/lanes.h"
#include "kernels/neon/vector_ops.h"
#include "kernels/vector_norm.h"

namespace tmac::neon {

constinit const NormOps norm{rms_norm<Lanes>, layer_norm<Lanes>};

}  // namespace tmac::neon
