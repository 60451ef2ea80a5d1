#include "kernels/vector_grid.h"

#include "kernels/avx512/lanes.h"
#include "kernels/avx512/vector_ops.h"

namespace tmac::avx512 {

constinit const GridOps grid{grid_sums<Lanes>, grid_error<Lanes>};

}  // namespace tmac::avx512
