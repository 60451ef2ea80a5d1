#include <algorithm>

#include "core/check.h"
#include "runtime/decoder.h"

// Token trees: passes over nodes that may follow a sequence, and what becomes of them.

namespace tmac {
namespace {

template <class T>
bool same_until(const std::vector<T>& a, const std::vector<T>& b, int64_t count) {
    return std::equal(a.begin(), a.begin() + count, b.begin());
}

/// The rows of the nodes from tree.first on.
PassRows rows_of(int64_t sequence, int64_t length, const TokenTree& tree) {
    PassRows rows;
    std::vector<int64_t> positions;
    for (size_t i = 0; i < tree.tokens.size(); ++i) {
        const int32_t parent = tree.parents[i];
        positions.push_back(parent < 0 ? length : positions[static_cast<size_t>(parent)] + 1);
        if (static_cast<int64_t>(i) < tree.first) {
            continue;
        }
        rows.sequences.push_back(sequence);
        rows.slots.push_back(length + static_cast<int64_t>(i));
        rows.positions.push_back(positions.back());
        rows.rope_lengths.push_back(positions.back() + 1);
    }
    rows.parents = tree.parents;
    rows.first_node = tree.first;
    return rows;
}

}  // namespace

void Decoder::check_tree(int64_t sequence, const TokenTree& tree) const {
    const auto count = static_cast<int64_t>(tree.tokens.size());
    check_tokens(tree.tokens);
    TMAC_CHECK(tree.tokens.size() == tree.parents.size(), "[Decoder] ", count, " tokens, but ", tree.parents.size(),
               " parents");
    for (int64_t i = 0; i < count; ++i) {
        const int32_t parent = tree.parents[static_cast<size_t>(i)];
        TMAC_CHECK(parent >= -1 && parent < i, "[Decoder] the parent of node ", i, " is ", parent,
                   ", not a node before it or -1");
    }
    TMAC_CHECK(tree.first >= 0 && tree.first <= count, "[Decoder] first=", tree.first, " of ", count, " nodes");
    if (tree.first == 0) {
        return;
    }
    const auto computed = static_cast<int64_t>(tree_.nodes.tokens.size());
    const bool is_there = tree_.sequence == sequence && cache_.length(sequence) == tree_.length &&
                          cache_.reserved(sequence) >= tree_.length + computed;
    TMAC_CHECK(is_there && tree.first <= computed, "[Decoder] first=", tree.first, ", but of the tree behind sequence ",
               sequence, " ", is_there ? computed : 0, " nodes have been computed since it last changed");
    TMAC_CHECK(same_until(tree.tokens, tree_.nodes.tokens, tree.first) &&
                   same_until(tree.parents, tree_.nodes.parents, tree.first),
               "[Decoder] the tokens or parents of nodes before first=", tree.first,
               " are not those that were computed");
    const auto drafted = std::find(tree_.drafted.begin(), tree_.drafted.begin() + tree.first, true);
    TMAC_CHECK(tree.draft || drafted == tree_.drafted.begin() + tree.first, "[Decoder] node ",
               drafted - tree_.drafted.begin(), " was computed with the draft: the model begins at first=0");
}

void Decoder::forward_tree(int64_t sequence, const TokenTree& tree, int num_threads,
                           const std::function<void()>& checkpoint, float* logits) {
    const int64_t length = cache_.length(sequence);
    check_tree(sequence, tree);
    const std::shared_ptr<const Model> model = tree.draft ? model_->draft.get() : model_;
    TMAC_CHECK(model != nullptr, "[Decoder] the model has no draft: make_draft() makes one");
    const auto first = tree.tokens.begin() + tree.first;
    std::vector<int64_t> wanted;
    for (auto token = first; token != tree.tokens.end(); ++token) {
        wanted.push_back(token - first);
    }
    cache_.reserve(sequence, static_cast<int64_t>(tree.tokens.size()));
    std::vector<bool> drafted = std::move(tree_.drafted);
    tree_ = {};
    try {
        run(*model, rows_of(sequence, length, tree), {first, tree.tokens.end()}, wanted, Phase::decode, num_threads,
            checkpoint, logits);
    } catch (...) {
        give_back_reserved(sequence);
        throw;
    }
    drafted.resize(static_cast<size_t>(tree.first));
    drafted.resize(tree.tokens.size(), tree.draft);
    tree_ = {sequence, length, tree, std::move(drafted)};
}

void Decoder::keep(int64_t sequence, const std::vector<int64_t>& nodes) {
    TMAC_CHECK(sequence == tree_.sequence, "[Decoder] the last pass was not a token tree of sequence ", sequence);
    int64_t before = -1;
    for (const int64_t node : nodes) {
        TMAC_CHECK(node >= 0 && node < static_cast<int64_t>(tree_.nodes.parents.size()) &&
                       tree_.nodes.parents[static_cast<size_t>(node)] == before,
                   "[Decoder] node ", node, " does not follow node ", before, " in the tree");
        TMAC_CHECK(!tree_.drafted[static_cast<size_t>(node)], "[Decoder] node ", node,
                   " was computed with the draft: only what the model has computed is kept");
        before = node;
    }
    tree_ = {};
    cache_.keep(sequence, nodes);
}

}  // namespace tmac
