#include "kernels/avx512/lanes.h"
#include "kernels/avx512/vector_ops.h"
#include "kernels/vector_elements.h"

namespace tmac::avx512 {

constinit const ElementOps elements{add<Lanes>,      add_scaled<Lanes>, scale<Lanes>,
                                    activate<Lanes>, softcap<Lanes>,    rope<Lanes>};

}  // namespace tmac::avx512
