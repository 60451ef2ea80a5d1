#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/model.h"
#include "runtime/pass.h"
#include "runtime/profile.h"

namespace tmac {

/// What one sequence adds in a pass.
struct Chunk {
    int64_t sequence;
    std::vector<int32_t> tokens;
    std::vector<int32_t> wanted;  ///< rows of the chunk whose logits are asked for, ascending
    int64_t rope_length = 0;  ///< positions that frequencies are computed for: of a prompt, its end; 0: each row's own
};

/// Nodes that may follow a sequence: node i follows node parents[i] < i, or the sequence where that is -1.
struct TokenTree {
    std::vector<int32_t> tokens;
    std::vector<int32_t> parents;
    int64_t first = 0;   ///< nodes before it have been computed by earlier calls
    bool draft = false;  ///< compute with the model's draft: what is cached for these nodes may not be kept
};

/// Runs a model over sequences that live in its KV cache. Not thread-safe.
class Decoder {
public:
    Decoder(std::shared_ptr<const Model> model, CacheType cache_type, int64_t max_positions);

    const Model& model() const { return *model_; }
    KvCache& cache() { return cache_; }
    const KvCache& cache() const { return cache_; }
    Profile& profile() { return profile_; }

    /// Appends the chunks to their sequences and writes the wanted rows' logits, f32 [wanted rows, vocab_size].
    /// Results do not depend on what else is in the pass, on its cuts, or on `num_threads`. `checkpoint` is called
    /// between layers; where it throws, no sequence has changed and none holds positions more. Throws
    /// std::invalid_argument on ids, tokens or rows that do not exist, and CacheFull.
    void forward(const std::vector<Chunk>& chunks, Phase phase, int num_threads,
                 const std::function<void()>& checkpoint, float* logits);

    /// Runs nodes of a token tree behind the sequence, whose length does not change, and writes the logits of those
    /// from tree.first on. keep() makes a path permanent. A tree may grow from call to call: nodes before tree.first
    /// keep what an earlier call has computed, as long as nothing else was run or done with the sequence since. A call
    /// that fails forgets the tree, but one that finds no page (CacheFull). Throws std::invalid_argument where nodes
    /// before tree.first were not computed so.
    void forward_tree(int64_t sequence, const TokenTree& tree, int num_threads, const std::function<void()>& checkpoint,
                      float* logits);

    /// Nodes of the last tree that the sequence goes on with: a path from the root, or its beginning. Throws
    /// std::invalid_argument where one was computed with the draft's weights.
    void keep(int64_t sequence, const std::vector<int64_t>& nodes);

private:
    /// The tree behind `sequence`, as far as its reserved positions hold it.
    struct CachedTree {
        int64_t sequence = -1;  ///< -1: none
        int64_t length = 0;     ///< of the sequence
        TokenTree nodes;
        std::vector<bool> drafted;
    };

    void check_tree(int64_t sequence, const TokenTree& tree) const;
    void run(const Model& model, const PassRows& rows, const std::vector<int32_t>& tokens,
             const std::vector<int64_t>& wanted, Phase phase, int num_threads, const std::function<void()>& checkpoint,
             float* logits);
    void embed(const Model& model, Pass& pass, const std::vector<int32_t>& tokens);
    static void compute_logits(const Model& model, Pass& pass, const std::vector<int64_t>& wanted, float* logits);
    void check_tokens(const std::vector<int32_t>& tokens) const;
    void give_back_reserved(int64_t sequence);

    std::shared_ptr<const Model> model_;
    KvCache cache_;
    Workspace workspace_;
    Profile profile_;
    CachedTree tree_;
};

}  // namespace tmac
