#include "core/release_memory.h"

#include <cstdlib>  // defines __GLIBC__ where it is that

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace tmac {

void release_memory() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

}  // namespace tmac
