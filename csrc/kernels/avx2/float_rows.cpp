#include "kernels/avx2/lanes.h"
#include "kernels/avx2/vector_ops.h"
#include "kernels/vector_rows.h"

namespace tmac::avx2 {

constinit const FloatRowsOps float_rows{tmac::float_rows<Lanes>};

}  // namespace tmac::avx2
