#include "kernels/avx2/lanes.h"
#include "kernels/avx2/vector_ops.h"
#include "kernels/vector_elements.h"

namespace tmac::avx2 {

constinit const ElementOps elements{add<Lanes>,      add_scaled<Lanes>, scale<Lanes>,
                                    activate<Lanes>, softcap<Lanes>,    rope<Lanes>};

}  // namespace tmac::avx2
