#include "kernels/vector_grid.h"

#include "kernels/neon/lanes.h"
#include "kernels/neon/vector_ops.h"

namespace tmac::neon {

constinit const GridOps grid{grid_sums<Lanes>, grid_error<Lanes>};

}  // namespace tmac::neon
