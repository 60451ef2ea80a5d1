#include "kernels/scalar/lanes.h"
#include "kernels/scalar/vector_ops.h"
#include "kernels/vector_norm.h"

namespace tmac::scalar {

constinit const NormOps norm{rms_norm<Lanes>, layer_norm<Lanes>};

}  // namespace tmac::scalar
