#include "kernels/avx2/lanes.h"
#include "kernels/avx2/vector_ops.h"
#include "kernels/vector_attention.h"
#include "kernels/vector_cache.h"

namespace tmac::avx2 {

constinit const AttentionOps attention{store_key<Lanes>, store_value<Lanes>, round_query<Lanes>,
                                       attend<Lanes>,    merge<Lanes>,       finish<Lanes>};

}  // namespace tmac::avx2
