#include "kernels/avx2/lanes.h"
#include "kernels/avx2/vector_ops.h"
#include "kernels/vector_softmax.h"

namespace tmac::avx2 {

constinit const SoftmaxOps softmax{max<Lanes>, sum_exp<Lanes>, exp<Lanes>};

}  // namespace tmac::avx2
