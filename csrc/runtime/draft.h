#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "runtime/model.h"

namespace tmac {

/// The model whose matrices are the leading planes of another one's, in the same memory (ops/prefix.h): `planes` of
/// them, or the fewest above that which the layout of a matrix can give, by the least squares fit of all planes.
/// Matrices of no more planes, floats and the embedding's rows stay as they are; a head that is tied to the embedding
/// does not. A streamed model is read once; `checkpoint` is called meanwhile, and may throw. Throws
/// std::invalid_argument naming a matrix that has no such prefix or is one already, and where no matrix has more planes
/// or some of those that are kept are not in memory; std::runtime_error as a pass does.
std::shared_ptr<const Model> make_draft(const Model& model, int32_t planes, int num_threads,
                                        const std::function<void()>& checkpoint);

}  // namespace tmac
