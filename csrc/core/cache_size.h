#pragma once

#include <cstdint>
#include <string>

namespace tmac {

/// Bytes of the last level of cache that `num_threads` threads can fill: that of one CPU, times the number of such
/// caches over which the threads are spread. 64 MiB where the system does not say.
int64_t last_level_cache_bytes(int num_threads);

/// "32768K" -> 33554432; 0 where the text is no size.
int64_t parse_cache_size(const std::string& text);

/// "0-3,8" -> 5 CPUs; 1 where the text is no list.
int64_t count_cpu_list(const std::string& text);

}  // namespace tmac
