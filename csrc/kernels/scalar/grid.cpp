#include "kernels/vector_grid.h"

#include "kernels/scalar/lanes.h"
#include "kernels/scalar/vector_ops.h"

namespace tmac::scalar {

constinit const GridOps grid{grid_sums<Lanes>, grid_error<Lanes>};

}  // namespace tmac::scalar
