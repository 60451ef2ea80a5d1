#include "kernels/vector_feedback.h"

#include "kernels/avx2/lanes.h"
#include "kernels/avx2/vector_ops.h"
#include "kernels/vector_factor.h"
#include "kernels/vector_grid_search.h"

namespace tmac::avx2 {

constinit const FeedbackOps feedback{tmac::feed_back<Lanes>, tmac::round_columns<Lanes>, tmac::search_grids<Lanes>,
                                     tmac::subtract_products<Lanes>, tmac::solve_columns<Lanes>};

}  // namespace tmac::avx2
