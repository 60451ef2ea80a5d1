#include "core/cache_size.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace tmac {
namespace {

constexpr int64_t kUnknown = int64_t{64} << 20;

struct Cache {
    int64_t bytes;
    int64_t sharing;  ///< CPUs over one such cache
};

#if defined(__linux__)

constexpr int kMaxCaches = 16;

std::string first_word(const std::string& path) {
    std::string word;
    std::ifstream(path) >> word;
    return word;
}

/// The highest level that sysfs lists for the first CPU.
Cache last_level() {
    Cache found{0, 1};
    int highest = 0;
    for (int index = 0; index < kMaxCaches; ++index) {
        const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
        const int level = std::atoi(first_word(folder + "/level").c_str());
        if (level > highest) {
            highest = level;
            found = {parse_cache_size(first_word(folder + "/size")),
                     count_cpu_list(first_word(folder + "/shared_cpu_list"))};
        }
    }
    return found;
}

#elif defined(__APPLE__)

int64_t sysctl_number(const char* name) {
    int64_t value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}

/// Apple's CPUs have an L2 per cluster and, below it, a system cache of about twice its size that nothing reports.
Cache last_level() {
    return {3 * std::max(sysctl_number("hw.perflevel0.l2cachesize"), sysctl_number("hw.l2cachesize")), 1024};
}

#else

Cache last_level() { return {0, 1}; }

#endif

}  // namespace

int64_t parse_cache_size(const std::string& text) {
    char* unit = nullptr;
    const long long number = std::strtoll(text.c_str(), &unit, 10);
    if (number <= 0 || number > (1LL << 40)) {
        return 0;
    }
    return *unit == 'K' ? number << 10 : *unit == 'M' ? number << 20 : number;
}

int64_t count_cpu_list(const std::string& text) {
    int64_t cpus = 0;
    std::istringstream ranges(text);
    for (std::string range; std::getline(ranges, range, ',');) {
        char* dash = nullptr;
        const long first = std::strtol(range.c_str(), &dash, 10);
        const long last = *dash == '-' ? std::strtol(dash + 1, nullptr, 10) : first;
        cpus += std::clamp(last - first + 1, 0L, 1L << 20);
    }
    return std::max<int64_t>(cpus, 1);
}

int64_t last_level_cache_bytes(int num_threads) {
    static const Cache cache = last_level();
    if (cache.bytes <= 0) {
        return kUnknown;
    }
    return cache.bytes * ((std::max(num_threads, 1) + cache.sharing - 1) / cache.sharing);
}

}  // namespace tmac
