#include "kernels/scalar/lanes.h"
#include "kernels/scalar/vector_ops.h"
#include "kernels/vector_rows.h"

namespace tmac::scalar {

constinit const FloatRowsOps float_rows{tmac::float_rows<Lanes>};

}  // namespace tmac::scalar
