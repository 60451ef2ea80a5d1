#include "kernels/avx512/lanes.h"
#include "kernels/avx512/vector_ops.h"
#include "kernels/vector_rows.h"

namespace tmac::avx512 {

constinit const FloatRowsOps float_rows{tmac::float_rows<Lanes>};

}  // namespace tmac::avx512
