#pragma once

// A file of random blocks for tests of what reads files.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/content_hash.h"
#include "core/direct_file.h"
#include "random.h"

namespace tmac {

class StreamFile {
public:
    explicit StreamFile(int64_t blocks, const std::string& name = "tmac_stream_file")
        : path_((std::filesystem::temp_directory_path() / (name + std::to_string(blocks))).string()) {
        Random random(static_cast<uint32_t>(blocks));
        for (int64_t i = 0; i < blocks * DirectFile::kBlock; ++i) {
            bytes.push_back(static_cast<uint8_t>(random.below(256)));
        }
        write();
    }
    ~StreamFile() { std::filesystem::remove(path_); }
    StreamFile(const StreamFile&) = delete;
    StreamFile& operator=(const StreamFile&) = delete;

    const std::string& path() const { return path_; }

    void write() const {
        std::ofstream file(path_, std::ios::binary);
        file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }

    uint64_t checksum(int64_t first_block, int64_t end_block) const {
        ContentHash hash;
        hash.update(bytes.data() + first_block * DirectFile::kBlock,
                    static_cast<size_t>((end_block - first_block) * DirectFile::kBlock));
        return hash.digest();
    }

    std::vector<uint8_t> bytes;

private:
    std::string path_;
};

}  // namespace tmac
