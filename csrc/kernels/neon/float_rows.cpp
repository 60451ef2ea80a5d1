#include "kernels/neon/lanes.h"
#include "kernels/neon/vector_ops.h"
#include "kernels/vector_rows.h"

namespace tmac::neon {

constinit const FloatRowsOps float_rows{tmac::float_rows<Lanes>};

}  // namespace tmac::neon
