#include "kernels/avx512/lanes.h"
#include "kernels/avx512/vector_ops.h"
#include "kernels/vector_attention.h"
#include "kernels/vector_cache.h"

namespace tmac::avx512 {

constinit const AttentionOps attention{store_key<Lanes>, store_value<Lanes>, round_query<Lanes>,
                                       attend<Lanes>,    merge<Lanes>,       finish<Lanes>};

}  // namespace tmac::avx512
