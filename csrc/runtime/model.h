#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ops/linear.h"
#include "runtime/model_config.h"
#include "runtime/row_source.h"

namespace tmac {

/// A weight [n, k] with its bias, packed or float. The bytes belong to `owner`.
struct Matrix {
    std::optional<WeightView> packed;
    FloatMatrix floats{};
    std::vector<float> bias;        ///< [n], or empty
    std::vector<float> input_norm;  ///< [k]: weight of an RMS norm that its input passes first; mostly empty
    float input_norm_eps = 0.0F;
    std::shared_ptr<const void> owner;
    std::shared_ptr<const RowSource> rows;  ///< of an embedding that stays on the disk: the pointers are null
    int64_t bytes = 0;                      ///< that a product reads
    int32_t place = -1;  ///< number in the model's StreamedWeights; -1: the bytes stay where they are

    bool exists() const { return owner != nullptr; }
    int64_t n() const { return packed ? packed->header.n : floats.n; }
    int64_t k() const { return packed ? packed->header.k : floats.k; }

    /// As a product that stores its result in `y`.
    Projection to(const Tensor& y, Store store = Store::set, float factor = 1.0F) const;
};

/// A norm's weight and, for a layer norm, bias.
struct Norm {
    std::vector<float> weight;  ///< empty: this norm does not exist
    std::vector<float> bias;    ///< may be empty

    bool exists() const { return !weight.empty(); }
};

/// gate, up and down of an MLP, or an expert; some have one matrix for gate and up, some no gate.
struct Mlp {
    Matrix gate, up, gate_up, down;
};

/// The weights of one layer. Which of them exist is up to the family; build_model() has checked their shapes.
struct Layer {
    int32_t index = 0;
    Norm input_norm, post_attention_norm, pre_mlp_norm, post_mlp_norm;
    Norm q_norm, k_norm;  ///< of each head
    Norm attention_sub_norm, mlp_sub_norm;
    Matrix q, k, v, qkv, o;
    Mlp mlp;
    Matrix router;
    std::vector<Mlp> experts;
    Mlp shared;
    Matrix shared_gate;
};

/// Calls body(matrix) for every matrix of a layer (or of a const one) that exists.
template <class AnyLayer, class Body>
void for_each_matrix(AnyLayer& layer, const Body& body) {
    const auto all = [&body](auto&... matrices) {
        const auto one = [&body](auto& matrix) {
            if (matrix.exists()) {
                body(matrix);
            }
        };
        (one(matrices), ...);
    };
    const auto mlp = [&all](auto& each) { all(each.gate, each.up, each.gate_up, each.down); };
    all(layer.q, layer.k, layer.v, layer.qkv, layer.o, layer.router, layer.shared_gate);
    mlp(layer.mlp);
    mlp(layer.shared);
    for (auto& expert : layer.experts) {
        mlp(expert);
    }
}

class StreamedWeights;
struct Model;

/// Where a model has its draft (runtime/draft.h). Decoders in other threads may look while one is set.
class DraftSlot {
public:
    std::shared_ptr<const Model> get() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return draft_;
    }
    void set(std::shared_ptr<const Model> draft) {
        const std::lock_guard<std::mutex> lock(mutex_);
        draft_ = std::move(draft);
    }

private:
    mutable std::mutex mutex_;
    std::shared_ptr<const Model> draft_;
};

struct Model {
    ModelConfig config;
    std::shared_ptr<StreamedWeights> streamed;  ///< of a model that does not fit into memory; else null
    Matrix embedding;
    Matrix head;  ///< does not exist where the embedding serves
    Norm final_norm;
    std::vector<Layer> layers;
    DraftSlot draft;

    const Matrix& output_head() const { return head.exists() ? head : embedding; }

    /// Bytes of all weights, and those that one generated token reads (no embedding, only the experts it routes to).
    int64_t weight_bytes() const;
    int64_t bytes_per_token() const;
};

/// Weights by the names that tmac/runtime describes: "embedding", "layers.0.q", "layers.0.experts.3.up", ...
struct NamedWeights {
    std::map<std::string, Matrix> matrices;
    std::map<std::string, std::vector<float>> vectors;  ///< "final_norm", "layers.0.input_norm.bias", ...
};

/// Puts the weights in their places. Throws std::invalid_argument naming the weight that is missing, not known, or of
/// another shape than the configuration says.
/// `streamed`: what made those of the matrices that have a place in a file.
std::shared_ptr<const Model> build_model(const ModelConfig& config, NamedWeights weights,
                                         std::shared_ptr<StreamedWeights> streamed = nullptr);

}  // namespace tmac
