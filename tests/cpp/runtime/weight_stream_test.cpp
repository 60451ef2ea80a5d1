#include "runtime/weight_stream.h"

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "catch.h"
#include "stream_file.h"

using namespace tmac;

namespace {

constexpr int64_t kBlock = DirectFile::kBlock;
const std::function<void()> kNothing = [] {};

FilePiece piece(const StreamFile& file, int64_t first, int64_t end) {
    return {first * kBlock, end * kBlock, file.checksum(first, end)};
}

/// Parts of 1, 3, 2 and 5 blocks, the second in two pieces, with a gap before the last.
std::vector<FilePart> parts_of(const StreamFile& file) {
    return {{piece(file, 1, 2)}, {piece(file, 2, 4), piece(file, 4, 5)}, {piece(file, 5, 7)}, {piece(file, 9, 14)}};
}

struct Opened {
    explicit Opened(const StreamFile& stream_file, const StreamOptions& options = {2, 3, kBlock})
        : file(std::make_shared<const DirectFile>(stream_file.path())),
          parts(parts_of(stream_file)),
          stream(file, file->state(), parts, options) {}

    /// One pass, compared with the bytes.
    void check_pass(const StreamFile& wanted) {
        stream.begin(kNothing);
        for (const FilePart& part : parts) {
            const uint8_t* found = stream.acquire(kNothing);
            CHECK(std::equal(found, found + (part.back().end - part.front().begin),
                             wanted.bytes.begin() + part.front().begin));
            stream.release();
        }
    }

    std::shared_ptr<const DirectFile> file;
    std::vector<FilePart> parts;
    WeightStream stream;
};

}  // namespace

TEST_CASE("WeightStream gives part after part, pass after pass") {
    const StreamFile file(14);
    for (const int32_t slots : {1, 2, 3, 9}) {
        for (const int32_t readers : {1, 4}) {
            Opened opened(file, {slots, readers, 2 * kBlock});
            for (int pass = 0; pass < 20; ++pass) {
                opened.check_pass(file);
            }
            const StreamStatistics found = opened.stream.statistics();
            CHECK(found.passes == 20);
            CHECK(found.bytes >= 20 * 11 * kBlock);
            CHECK(found.bytes <= 20 * 11 * kBlock + slots * 5 * kBlock);
        }
    }
}

TEST_CASE("WeightStream begins anew where a pass was left") {
    const StreamFile file(14);
    Opened opened(file);
    for (size_t left_at = 0; left_at < 4; ++left_at) {
        for (const bool held : {false, true}) {
            opened.stream.begin(kNothing);
            for (size_t i = 0; i < left_at; ++i) {
                opened.stream.acquire(kNothing);
                opened.stream.release();
            }
            if (held) {
                opened.stream.acquire(kNothing);
            }
            opened.check_pass(file);
        }
    }
}

TEST_CASE("WeightStream waits no longer than a checkpoint lets it") {
    const StreamFile file(14);
    Opened opened(file);
    opened.stream.set_limit(1000.0);
    opened.stream.begin(kNothing);
    int calls = 0;
    CHECK_THROWS_AS(opened.stream.acquire([&] {
        if (++calls == 3) {
            throw std::domain_error("enough");
        }
    }),
                    std::domain_error);
    opened.stream.set_limit(0.0);
    opened.check_pass(file);
}

TEST_CASE("WeightStream keeps to a limit, and ends while it is held back") {
    const StreamFile file(14);
    const auto begin = std::chrono::steady_clock::now();
    {
        Opened opened(file);
        opened.stream.set_limit(11.0 * kBlock / 0.2);
        opened.check_pass(file);
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
        CHECK(passed.count() > 0.15);
        opened.stream.set_limit(1.0);
    }
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
}

TEST_CASE("WeightStream begins anew after a begin() that a checkpoint ended") {
    const StreamFile file(14);
    Opened opened(file);
    for (int i = 0; i < 20; ++i) {
        opened.stream.begin(kNothing);
        opened.stream.acquire(kNothing);
        try {  // readers are mostly at rest before anybody asks
            opened.stream.begin([] { throw std::domain_error("enough"); });
        } catch (const std::domain_error&) {
        }
        opened.check_pass(file);
    }
}

TEST_CASE("WeightStream is held back by any limit") {
    const StreamFile file(14);
    for (const double limit : {1e-9, 1e-300, 5e-324}) {
        CAPTURE(limit);
        Opened opened(file);
        opened.stream.set_limit(limit);
        for (int pass = 0; pass < 3; ++pass) {
            opened.stream.begin(kNothing);
            int calls = 0;
            const auto stop = [&calls] {
                if (++calls == 3) {
                    throw std::domain_error("enough");
                }
            };
            CHECK_THROWS_AS(opened.stream.acquire(stop), std::domain_error);
        }
        opened.stream.set_limit(0.0);
        opened.check_pass(file);
    }
}

TEST_CASE("WeightStream names a file that is damaged, changed or shorter, and tries again") {
    StreamFile file(14);
    SECTION("damaged, and nobody says so") {
        std::vector<FilePart> parts = parts_of(file);
        parts[2][0].checksum ^= 1;
        const auto direct = std::make_shared<const DirectFile>(file.path());
        WeightStream stream(direct, direct->state(), parts, {2, 3, kBlock});
        const auto whole_pass = [&stream] {
            stream.begin(kNothing);
            for (int part = 0; part < 4; ++part) {
                stream.acquire(kNothing);
                stream.release();
            }
        };
        for (int pass = 0; pass < 2; ++pass) {
            CHECK_THROWS_AS(whole_pass(), DamagedFile);
        }
    }
    SECTION("shorter") {
        Opened opened(file);
        opened.check_pass(file);
        std::filesystem::resize_file(file.path(), 10 * kBlock);
        CHECK_THROWS_AS(
            [&] {
                opened.check_pass(file);
                opened.check_pass(file);
            }(),
            std::runtime_error);
    }
    SECTION("of another time") {
        Opened opened(file);
        std::filesystem::last_write_time(file.path(),
                                         std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
        CHECK_THROWS_WITH(opened.check_pass(file), TMAC_CONTAINS("was changed"));
        CHECK_THROWS_WITH(opened.check_pass(file), TMAC_CONTAINS(file.path()));
    }
}

TEST_CASE("WeightStream refuses parts that cannot be") {
    const StreamFile file(14);
    const auto direct = std::make_shared<const DirectFile>(file.path());
    const auto make = [&](const std::vector<FilePart>& parts) {
        WeightStream stream(direct, direct->state(), parts, {2, 3, kBlock});
    };
    CHECK_THROWS_AS(make({}), std::invalid_argument);
    CHECK_THROWS_AS(make({{}}), std::invalid_argument);
    CHECK_THROWS_AS(make({{{0, 0, 0}}}), std::invalid_argument);
    CHECK_THROWS_AS(make({{{0, 15 * kBlock, 0}}}), std::invalid_argument);
    CHECK_THROWS_AS(make({{{-kBlock, kBlock, 0}}}), std::invalid_argument);
    CHECK_THROWS_AS(make({{{100, kBlock, 0}}}), std::invalid_argument);
    CHECK_THROWS_AS(make({{{kBlock, 2 * kBlock, 0}, {3 * kBlock, 4 * kBlock, 0}}}), std::invalid_argument);
}
