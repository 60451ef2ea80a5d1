#include "kernels/vector_feedback.h"

#include "kernels/scalar/lanes.h"
#include "kernels/scalar/vector_ops.h"
#include "kernels/vector_factor.h"
#include "kernels/vector_grid_search.h"

namespace tmac::scalar {

constinit const FeedbackOps feedback{tmac::feed_back<Lanes>, tmac::round_columns<Lanes>, tmac::search_grids<Lanes>,
                                     tmac::subtract_products<Lanes>, tmac::solve_columns<Lanes>};

}  // namespace tmac::scalar
