#include "kernels/neon/lanes.h"
#include "kernels/neon/vector_ops.h"
#include "kernels/vector_attention.h"
#include "kernels/vector_cache.h"

namespace tmac::neon {

constinit const AttentionOps attention{store_key<Lanes>, store_value<Lanes>, round_query<Lanes>,
                                       attend<Lanes>,    merge<Lanes>,       finish<Lanes>};

}  // namespace tmac::neon
