#pragma once

#include <cstdint>
#include <memory>

#include "runtime/model.h"

namespace tmac {

/// The model whose matrices are the leading planes of another one's, in the same memory (ops/prefix.h): `planes` of
/// them, or the fewest above that which the layout of a matrix can give. Matrices of no more planes, floats and the
/// embedding's rows stay as they are; a head that is tied to the embedding is not. Weights of which some regions are
/// not in memory take the middle of the codes, all others the least squares fit. Throws std::invalid_argument naming
/// a matrix that has no such prefix, and where no matrix has more planes.
std::shared_ptr<const Model> make_draft(const Model& model, int32_t planes, int num_threads);

}  // namespace tmac
