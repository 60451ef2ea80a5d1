#include "kernels/avx512/lanes.h"
#include "kernels/avx512/vector_ops.h"
#include "kernels/vector_softmax.h"

namespace tmac::avx512 {

constinit const SoftmaxOps softmax{max<Lanes>, sum_exp<Lanes>, exp<Lanes>};

}  // namespace tmac::avx512
