#include "kernels/neon/lanes.h"
#include "kernels/neon/vector_ops.h"
#include "kernels/vector_elements.h"

namespace tmac::neon {

constinit const ElementOps elements{add<Lanes>,      add_scaled<Lanes>, scale<Lanes>,
                                    activate<Lanes>, softcap<Lanes>,    rope<Lanes>};

}  // namespace tmac::neon
