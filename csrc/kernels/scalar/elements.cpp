#include "kernels/scalar/lanes.h"
#include "kernels/scalar/vector_ops.h"
#include "kernels/vector_elements.h"

namespace tmac::scalar {

constinit const ElementOps elements{add<Lanes>,      add_scaled<Lanes>, scale<Lanes>,
                                    activate<Lanes>, softcap<Lanes>,    rope<Lanes>};

}  // namespace tmac::scalar
