#include "kernels/vector_grid.h"

#include "kernels/avx2/lanes.h"
#include "kernels/avx2/vector_ops.h"

namespace tmac::avx2 {

constinit const GridOps grid{grid_sums<Lanes>, grid_error<Lanes>};

}  // namespace tmac::avx2
