#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tmac {

/// Instruction sets that kernels ask for. A bit is set when the CPU has it and the operating system saves its state.
enum CpuFeature : uint32_t {
    kAvx2 = 1U << 0,
    kFma = 1U << 1,
    kF16c = 1U << 2,
    kAvxVnni = 1U << 3,
    kAvx512f = 1U << 4,
    kAvx512bw = 1U << 5,
    kAvx512dq = 1U << 6,
    kAvx512vl = 1U << 7,
    kAvx512vbmi = 1U << 8,
    kAvx512vnni = 1U << 9,
    kNeon = 1U << 10,
    kDotprod = 1U << 11,
    kI8mm = 1U << 12,
    kAvx512fp16 = 1U << 13,  ///< no kernel computes with it: see QgemmArgs::ask_ahead
};

struct FeatureName {
    CpuFeature bit;
    const char* name;
};

/// Every feature with its name, in the order of the bits.
const std::vector<FeatureName>& feature_names();

/// What this CPU and operating system offer, whatever TMAC_CPU_FEATURES says.
uint32_t detect_cpu_features();

/// Detected features less those that `hidden` names ("-avx512vbmi,-avx512vnni"). Throws std::invalid_argument on an
/// unknown name or a missing minus.
uint32_t hide_features(uint32_t detected, const std::string& hidden);

/// detect_cpu_features() with TMAC_CPU_FEATURES applied; read once.
uint32_t cpu_features();

/// The brand string of the CPU, or "unknown".
std::string cpu_model();

}  // namespace tmac
