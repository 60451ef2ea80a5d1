#include "kernels/scalar/lanes.h"
#include "kernels/scalar/vector_ops.h"
#include "kernels/vector_softmax.h"

namespace tmac::scalar {

constinit const SoftmaxOps softmax{max<Lanes>, sum_exp<Lanes>, exp<Lanes>};

}  // namespace tmac::scalar
