#include "kernels/scalar/lanes.h"
#include "kernels/scalar/vector_ops.h"
#include "kernels/vector_attention.h"
#include "kernels/vector_cache.h"

namespace tmac::scalar {

constinit const AttentionOps attention{store_key<Lanes>, store_value<Lanes>, round_query<Lanes>,
                                       attend<Lanes>,    merge<Lanes>,       finish<Lanes>};

}  // namespace tmac::scalar
