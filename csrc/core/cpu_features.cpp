#include "core/cpu_features.h"

#include <cstdlib>
#include <cstring>

#include "core/check.h"

#if defined(__x86_64__) || defined(_M_X64)
#define TMAC_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

#include <fstream>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace tmac {
namespace {

#ifdef TMAC_X86

struct CpuidLeaf {
    uint32_t eax, ebx, ecx, edx;
};

CpuidLeaf cpuid(uint32_t leaf, uint32_t subleaf) {
    CpuidLeaf r{};
#if defined(_MSC_VER)
    int words[4];
    __cpuidex(words, static_cast<int>(leaf), static_cast<int>(subleaf));
    std::memcpy(&r, words, sizeof(r));
#else
    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
    return r;
}

uint64_t xgetbv() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low = 0;
    uint32_t high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t{high} << 32) | low;
#endif
}

constexpr bool bit(uint32_t word, int index) { return ((word >> index) & 1U) != 0; }

uint32_t detect() {
    const uint32_t last_leaf = cpuid(0, 0).eax;
    const CpuidLeaf one = cpuid(1, 0);
    if (last_leaf < 7 || !bit(one.ecx, 27)) {  // OSXSAVE: without it the wide registers are not saved
        return 0;
    }
    const uint64_t saved = xgetbv();
    const bool ymm = (saved & 0x06U) == 0x06U;
    const bool zmm = (saved & 0xe6U) == 0xe6U;
    const CpuidLeaf seven = cpuid(7, 0);
    const CpuidLeaf seven_one = seven.eax >= 1 ? cpuid(7, 1) : CpuidLeaf{};
    uint32_t found = 0;
    const auto set = [&found](bool present, uint32_t feature) { found |= present ? feature : 0U; };
    if (ymm) {
        set(bit(seven.ebx, 5), kAvx2);
        set(bit(one.ecx, 12), kFma);
        set(bit(one.ecx, 29), kF16c);
        set(bit(seven_one.eax, 4), kAvxVnni);
    }
    if (zmm) {
        set(bit(seven.ebx, 16), kAvx512f);
        set(bit(seven.ebx, 30), kAvx512bw);
        set(bit(seven.ebx, 17), kAvx512dq);
        set(bit(seven.ebx, 31), kAvx512vl);
        set(bit(seven.ecx, 1), kAvx512vbmi);
        set(bit(seven.ecx, 11), kAvx512vnni);
        set(bit(seven.edx, 23), kAvx512fp16);
    }
    return found;
}

std::string brand() {
    if (cpuid(0x80000000U, 0).eax < 0x80000004U) {
        return "unknown";
    }
    char text[49] = {};
    for (uint32_t i = 0; i < 3; ++i) {
        const CpuidLeaf leaf = cpuid(0x80000002U + i, 0);
        std::memcpy(text + 16 * i, &leaf, 16);
    }
    std::string name(text);
    name.erase(name.find_last_not_of(' ') + 1);
    name.erase(0, name.find_first_not_of(' '));
    return name;
}

#elif defined(__aarch64__) && defined(__linux__)

uint32_t detect() {
    const unsigned long hwcap = getauxval(AT_HWCAP);
    const unsigned long hwcap2 = getauxval(AT_HWCAP2);
    uint32_t found = 0;
    found |= (hwcap & (1UL << 1)) != 0 ? kNeon : 0U;      // HWCAP_ASIMD
    found |= (hwcap & (1UL << 20)) != 0 ? kDotprod : 0U;  // HWCAP_ASIMDDP
    found |= (hwcap2 & (1UL << 13)) != 0 ? kI8mm : 0U;    // HWCAP2_I8MM
    return found;
}

/// The register that names implementer and part, as the kernel shows it.
std::string brand() {
    std::string midr;
    std::ifstream("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1") >> midr;
    return midr.empty() ? "aarch64" : "aarch64 " + midr;
}

#elif defined(__APPLE__)

bool sysctl_flag(const char* name) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

uint32_t detect() {
    uint32_t found = kNeon;
    found |= sysctl_flag("hw.optional.arm.FEAT_DotProd") ? kDotprod : 0U;
    found |= sysctl_flag("hw.optional.arm.FEAT_I8MM") ? kI8mm : 0U;
    return found;
}

std::string brand() {
    char text[128] = {};
    size_t size = sizeof(text) - 1;
    return sysctlbyname("machdep.cpu.brand_string", text, &size, nullptr, 0) == 0 ? text : "unknown";
}

#else

uint32_t detect() { return 0; }

std::string brand() { return "unknown"; }

#endif

}  // namespace

const std::vector<FeatureName>& feature_names() {
    static const std::vector<FeatureName> names = {
        {kAvx2, "avx2"},
        {kFma, "fma"},
        {kF16c, "f16c"},
        {kAvxVnni, "avxvnni"},
        {kAvx512f, "avx512f"},
        {kAvx512bw, "avx512bw"},
        {kAvx512dq, "avx512dq"},
        {kAvx512vl, "avx512vl"},
        {kAvx512vbmi, "avx512vbmi"},
        {kAvx512vnni, "avx512vnni"},
        {kNeon, "neon"},
        {kDotprod, "dotprod"},
        {kI8mm, "i8mm"},
        {kAvx512fp16, "avx512fp16"},
    };
    return names;
}

uint32_t detect_cpu_features() {
    static const uint32_t found = detect();
    return found;
}

uint32_t hide_features(uint32_t detected, const std::string& hidden) {
    std::istringstream words(hidden);
    for (std::string word; std::getline(words, word, ',');) {
        if (word.empty()) {
            continue;
        }
        bool known = false;
        for (const FeatureName& feature : feature_names()) {
            if (word == std::string("-") + feature.name) {
                detected &= ~static_cast<uint32_t>(feature.bit);
                known = true;
            }
        }
        TMAC_CHECK(known, "[TMAC_CPU_FEATURES] '", word, "' is not '-' and the name of a feature");
    }
    return detected;
}

uint32_t cpu_features() {
    static const uint32_t visible = [] {
        const char* hidden = std::getenv("TMAC_CPU_FEATURES");
        return hide_features(detect_cpu_features(), hidden == nullptr ? "" : hidden);
    }();
    return visible;
}

std::string cpu_model() { return brand(); }

}  // namespace tmac
