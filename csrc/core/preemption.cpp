#include "core/preemption.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>
#endif

namespace tmac {

int64_t preemptions() {
#if defined(__unix__) || defined(__APPLE__)
    rusage usage{};
    return getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<int64_t>(usage.ru_nivcsw) : 0;
#else
    return 0;
#endif
}

}  // namespace tmac
