#include "kernels/neon/lanes.h"
#include "kernels/neon/vector_ops.h"
#include "kernels/vector_softmax.h"

namespace tmac::neon {

constinit const SoftmaxOps softmax{max<Lanes>, sum_exp<Lanes>, exp<Lanes>};

}  // namespace tmac::neon
