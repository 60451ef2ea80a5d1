#include "runtime/model.h"

#include <utility>

#include "core/check.h"
#include "runtime/models/families.h"
#include "runtime/streamed_weights.h"

namespace tmac {
namespace {

/// Takes weights out of what was given, and knows what is left at the end.
class Taker {
public:
    Taker(NamedWeights weights, float input_norm_eps) : weights_(std::move(weights)), input_norm_eps_(input_norm_eps) {}

    /// The matrix, of the given shape, or one that does not exist.
    Matrix matrix(const std::string& name, int64_t n, int64_t k) {
        auto node = weights_.matrices.extract(name);
        if (node.empty()) {
            return {};
        }
        Matrix& matrix = node.mapped();
        TMAC_CHECK(matrix.n() == n && matrix.k() == k, "[Model] ", name, " has shape [", matrix.n(), ", ", matrix.k(),
                   "], not [", n, ", ", k, "]");
        TMAC_CHECK(matrix.bias.empty() || static_cast<int64_t>(matrix.bias.size()) == n, "[Model] the bias of ", name,
                   " has ", matrix.bias.size(), " values, not ", n);
        matrix.input_norm = vector(name + ".input_norm", k);
        matrix.input_norm_eps = input_norm_eps_;
        TMAC_CHECK(matrix.input_norm.empty() || matrix.packed, "[Model] ", name,
                   " is no low-bit weight, but has an "
                   "input_norm");
        return std::move(matrix);
    }

    Norm norm(const std::string& name, int64_t size) { return {vector(name, size), vector(name + ".bias", size)}; }

    void check_empty() const {
        if (!weights_.matrices.empty()) {
            fail("[Model] unknown weight '", weights_.matrices.begin()->first, "'");
        }
        if (!weights_.vectors.empty()) {
            fail("[Model] unknown weight '", weights_.vectors.begin()->first, "'");
        }
    }

private:
    std::vector<float> vector(const std::string& name, int64_t size) {
        auto node = weights_.vectors.extract(name);
        if (node.empty()) {
            return {};
        }
        TMAC_CHECK(static_cast<int64_t>(node.mapped().size()) == size, "[Model] ", name, " has ", node.mapped().size(),
                   " values, not ", size);
        return std::move(node.mapped());
    }

    NamedWeights weights_;
    float input_norm_eps_;
};

Mlp take_mlp(Taker& take, const std::string& prefix, int64_t hidden, int64_t inner) {
    return {take.matrix(prefix + "gate", inner, hidden), take.matrix(prefix + "up", inner, hidden),
            take.matrix(prefix + "gate_up", 2 * inner, hidden), take.matrix(prefix + "down", hidden, inner)};
}

void take_experts(Taker& take, const ModelConfig& config, const std::string& prefix, Layer& layer) {
    const int64_t hidden = config.hidden_size;
    layer.router = take.matrix(prefix + "router", config.num_experts, hidden);
    for (int32_t i = 0; i < config.num_experts; ++i) {
        const std::string expert = prefix + "experts." + std::to_string(i) + ".";
        layer.experts.push_back(take_mlp(take, expert, hidden, config.moe_intermediate_size));
    }
    if (config.shared_intermediate_size > 0) {
        layer.shared = take_mlp(take, prefix + "shared.", hidden, config.shared_intermediate_size);
        layer.shared_gate = take.matrix(prefix + "shared_gate", 1, hidden);
    }
}

Layer take_layer(Taker& take, const ModelConfig& config, int32_t index) {
    const std::string prefix = "layers." + std::to_string(index) + ".";
    const int64_t hidden = config.hidden_size;
    const int64_t q = config.query_columns();
    const int64_t kv = config.key_columns();
    Layer layer;
    layer.index = index;
    layer.input_norm = take.norm(prefix + "input_norm", hidden);
    layer.post_attention_norm = take.norm(prefix + "post_attention_norm", hidden);
    layer.pre_mlp_norm = take.norm(prefix + "pre_mlp_norm", hidden);
    layer.post_mlp_norm = take.norm(prefix + "post_mlp_norm", hidden);
    layer.q_norm = take.norm(prefix + "q_norm", config.head_dim);
    layer.k_norm = take.norm(prefix + "k_norm", config.head_dim);
    layer.attention_sub_norm = take.norm(prefix + "attention_sub_norm", q);
    layer.q = take.matrix(prefix + "q", q, hidden);
    layer.k = take.matrix(prefix + "k", kv, hidden);
    layer.v = take.matrix(prefix + "v", kv, hidden);
    layer.qkv = take.matrix(prefix + "qkv", q + 2 * kv, hidden);
    layer.o = take.matrix(prefix + "o", hidden, q);
    if (config.sparse_layers[static_cast<size_t>(index)]) {
        take_experts(take, config, prefix, layer);
    } else {
        layer.mlp = take_mlp(take, prefix, hidden, config.intermediate_size);
        layer.mlp_sub_norm = take.norm(prefix + "mlp_sub_norm", config.intermediate_size);
    }
    return layer;
}

int64_t bytes_of(const Mlp& mlp) { return mlp.gate.bytes + mlp.up.bytes + mlp.gate_up.bytes + mlp.down.bytes; }

/// Without the experts.
int64_t bytes_of(const Layer& layer) {
    return layer.q.bytes + layer.k.bytes + layer.v.bytes + layer.qkv.bytes + layer.o.bytes + bytes_of(layer.mlp) +
           layer.router.bytes + bytes_of(layer.shared) + layer.shared_gate.bytes;
}

}  // namespace

Projection Matrix::to(const Tensor& y, Store store, float factor) const {
    const float* bias_data = bias.empty() ? nullptr : bias.data();
    if (!packed) {
        return {floats, bias_data, y, store, factor};
    }
    Projection projection(*packed, bias_data, y, store, factor);
    projection.input_norm = input_norm.empty() ? nullptr : input_norm.data();
    projection.input_norm_eps = input_norm_eps;
    return projection;
}

int64_t Model::weight_bytes() const {
    int64_t sum = embedding.bytes + head.bytes;
    for (const Layer& layer : layers) {
        sum += bytes_of(layer);
        for (const Mlp& expert : layer.experts) {
            sum += bytes_of(expert);
        }
    }
    return sum;
}

int64_t Model::bytes_per_token() const {
    int64_t sum = output_head().bytes;
    for (const Layer& layer : layers) {
        sum += bytes_of(layer);
        int64_t experts = 0;
        for (const Mlp& expert : layer.experts) {
            experts += bytes_of(expert);
        }
        if (!layer.experts.empty()) {
            sum += experts * config.experts_per_token / config.num_experts;
        }
    }
    return sum;
}

std::shared_ptr<const Model> build_model(const ModelConfig& config, NamedWeights weights,
                                         std::shared_ptr<StreamedWeights> streamed) {
    validate(config);
    const Family& family = find_family(config.family);
    auto model = std::make_shared<Model>();
    model->config = config;
    Taker take(std::move(weights), config.input_norm_eps);
    model->embedding = take.matrix("embedding", config.vocab_size, config.hidden_size);
    TMAC_CHECK(model->embedding.exists(), "[Model] weight 'embedding' is missing");
    model->head = take.matrix("head", config.vocab_size, config.hidden_size);
    TMAC_CHECK(model->head.exists() || !model->embedding.rows,
               "[Model] an embedding that is the head, too, must be in memory");
    model->final_norm = take.norm("final_norm", config.hidden_size);
    TMAC_CHECK(model->final_norm.exists(), "[Model] weight 'final_norm' is missing");
    for (int32_t i = 0; i < config.num_layers; ++i) {
        model->layers.push_back(take_layer(take, config, i));
        check_layer(family, config, model->layers.back());
    }
    take.check_empty();
    if (streamed) {
        model->streamed = std::move(streamed);
        model->streamed->attach(*model);
    }
    return model;
}

}  // namespace tmac
