#include "kernels/vector_feedback.h"

#include "kernels/avx512/lanes.h"
#include "kernels/avx512/vector_ops.h"
#include "kernels/vector_factor.h"
#include "kernels/vector_grid_search.h"

namespace tmac::avx512 {

constinit const FeedbackOps feedback{tmac::feed_back<Lanes>, tmac::round_columns<Lanes>, tmac::search_grids<Lanes>,
                                     tmac::subtract_products<Lanes>, tmac::solve_columns<Lanes>};

}  // namespace tmac::avx512
