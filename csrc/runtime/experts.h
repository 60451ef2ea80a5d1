#pragma once

#include "runtime/pass.h"

namespace tmac {

/// A mixture of experts: hidden += what the experts that the router chooses make of norm(hidden), and what the shared
/// expert does, if there is one. Only weights of chosen experts are read.
void run_experts(const Layer& layer, Pass& pass);

}  // namespace tmac
