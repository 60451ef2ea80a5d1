#include "runtime/decoder.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/check.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"
#include "ops/convert.h"
#include "ops/embedding.h"
#include "runtime/models/families.h"
#include "runtime/streamed_weights.h"

namespace tmac {
namespace {

std::vector<CacheLayer> cache_layers(const ModelConfig& config) {
    std::vector<CacheLayer> layers;
    for (const int64_t window : config.windows) {
        layers.push_back({config.num_kv_heads, config.head_dim, window});
    }
    return layers;
}

/// The wanted rows of the last hidden state, normalized.
class LastRows final : public InputRows {
public:
    LastRows(NormRows normed, const std::vector<int64_t>& wanted) : normed_(std::move(normed)), wanted_(wanted) {}
    const float* row(int64_t token, float* scratch) const override {
        return normed_.row(wanted_[static_cast<size_t>(token)], scratch);
    }

private:
    NormRows normed_;
    const std::vector<int64_t>& wanted_;
};

void add_rows(const Chunk& chunk, int64_t length, PassRows& rows) {
    for (size_t i = 0; i < chunk.tokens.size(); ++i) {
        const int64_t position = length + static_cast<int64_t>(i);
        rows.sequences.push_back(chunk.sequence);
        rows.slots.push_back(position);
        rows.positions.push_back(position);
        rows.rope_lengths.push_back(std::max(chunk.rope_length, position + 1));
    }
}

}  // namespace

Decoder::Decoder(std::shared_ptr<const Model> model, CacheType cache_type, int64_t max_positions)
    : model_(std::move(model)), cache_(cache_type, cache_layers(model_->config), max_positions) {}

/// Of a pass that failed: others may want the pages.
void Decoder::give_back_reserved(int64_t sequence) { cache_.truncate(sequence, cache_.length(sequence)); }

void Decoder::check_tokens(const std::vector<int32_t>& tokens) const {
    for (const int32_t token : tokens) {
        TMAC_CHECK(token >= 0 && token < model_->config.vocab_size, "[Decoder] token ", token,
                   " is not one of the model's ", model_->config.vocab_size);
    }
}

void Decoder::forward(const std::vector<Chunk>& chunks, Phase phase, int num_threads,
                      const std::function<void()>& checkpoint, float* logits) {
    tree_ = {};
    PassRows rows;
    std::vector<int32_t> tokens;
    std::vector<int64_t> wanted;
    for (size_t i = 0; i < chunks.size(); ++i) {
        const Chunk& chunk = chunks[i];
        check_tokens(chunk.tokens);
        for (size_t j = 0; j < i; ++j) {
            TMAC_CHECK(chunks[j].sequence != chunk.sequence, "[Decoder] sequence ", chunk.sequence, " is given twice");
        }
        for (const int32_t row : chunk.wanted) {
            TMAC_CHECK(row >= 0 && row < static_cast<int64_t>(chunk.tokens.size()), "[Decoder] wanted row ", row,
                       " is not one of the chunk's ", chunk.tokens.size());
            wanted.push_back(static_cast<int64_t>(tokens.size()) + row);
        }
        add_rows(chunk, cache_.length(chunk.sequence), rows);
        tokens.insert(tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    }
    try {
        for (const Chunk& chunk : chunks) {
            cache_.reserve(chunk.sequence, static_cast<int64_t>(chunk.tokens.size()));
        }
        run(*model_, rows, tokens, wanted, phase, num_threads, checkpoint, logits);
    } catch (...) {
        for (const Chunk& chunk : chunks) {
            give_back_reserved(chunk.sequence);
        }
        throw;
    }
    for (const Chunk& chunk : chunks) {
        cache_.commit(chunk.sequence, static_cast<int64_t>(chunk.tokens.size()));
    }
}

void Decoder::run(const Model& model, const PassRows& rows, const std::vector<int32_t>& tokens,
                  const std::vector<int64_t>& wanted, Phase phase, int num_threads,
                  const std::function<void()>& checkpoint, float* logits) {
    if (rows.count() == 0) {
        return;
    }
    const auto begin = std::chrono::steady_clock::now();
    const int threads = num_threads > 0 ? num_threads : get_num_threads();
    Pass pass(model, cache_, rows, phase, threads, workspace_, profile_);
    const Family& family = find_family(model.config.family);
    StreamedWeights::Pass weights(model.streamed.get(), checkpoint);
    embed(model, pass, tokens);
    for (const Layer& layer : model.layers) {
        checkpoint();
        weights.enter(layer.index);
        family.run(layer, pass);
        weights.leave(layer.index);
    }
    compute_logits(model, pass, wanted, logits);
    if (profile_.on) {
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
        profile_.total += passed.count();
        profile_.passes += 1;
        profile_.rows += rows.count();
    }
}

void Decoder::embed(const Model& model, Pass& pass, const std::vector<int32_t>& tokens) {
    const StageTimer timer(profile_, Stage::embedding);
    const Matrix& table = model.embedding;
    const Floats2d hidden = pass.hidden();
    const std::vector<int64_t> ids(tokens.begin(), tokens.end());
    if (table.rows) {
        table.rows->read(ids.data(), hidden.tensor(pass.tokens()), pass.num_threads());
    } else if (table.packed) {
        embedding(*table.packed, ids.data(), hidden.tensor(pass.tokens()), pass.num_threads());
    } else {
        const Tensor rows{const_cast<void*>(table.floats.data), table.floats.type, table.n(), table.k(), table.k()};
        for (int64_t i = 0; i < pass.tokens(); ++i) {
            load_row(rows, tokens[static_cast<size_t>(i)], hidden.row(i));
        }
    }
    const float scale = model.config.embedding_scale;
    for (int64_t i = 0; scale != 1.0F && i < pass.tokens(); ++i) {
        vector_ops().scale(hidden.row(i), scale, hidden.columns);
    }
}

void Decoder::compute_logits(const Model& model, Pass& pass, const std::vector<int64_t>& wanted, float* logits) {
    if (wanted.empty()) {
        return;
    }
    const ModelConfig& config = model.config;
    const bool layer_norm = find_family(config.family).layer_norm;
    const NormRows normed = pass.normed(model.final_norm, layer_norm ? NormKind::layer : NormKind::rms);
    const LastRows rows(normed, wanted);
    const auto count = static_cast<int64_t>(wanted.size());
    const Tensor y{logits, DType::f32, count, config.vocab_size, config.vocab_size};
    pass.multiply(Stage::head, {{&rows, count, config.hidden_size, {model.output_head().to(y)}}});
    for (int64_t i = 0; i < count; ++i) {
        float* row = logits + i * config.vocab_size;
        if (config.logit_scale != 1.0F) {
            vector_ops().scale(row, config.logit_scale, config.vocab_size);
        }
        if (config.logit_softcap > 0.0F) {
            vector_ops().softcap(row, config.logit_softcap, config.vocab_size);
        }
    }
}

}  // namespace tmac
