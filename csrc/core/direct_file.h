#pragma once

#include <cstdint>
#include <string>

namespace tmac {

/// A file that is read in blocks, past the page cache where the file system allows it, else through the cache without
/// leaving much there. Never mapped: whatever happens to the file is an exception. May be read by several threads.
class DirectFile {
public:
    /// Offsets, sizes and addresses of every read are multiples of it.
    static constexpr int64_t kBlock = 4096;

    /// What changes when somebody writes to the file.
    struct State {
        int64_t size;
        int64_t modified_ns;  ///< of the system's clock

        friend bool operator==(const State&, const State&) = default;
    };

    /// Throws std::runtime_error, as everything here, with the file's name and the system's reason.
    explicit DirectFile(std::string path);
    ~DirectFile();
    DirectFile(const DirectFile&) = delete;
    DirectFile& operator=(const DirectFile&) = delete;

    const std::string& path() const { return path_; }

    /// Whether reads go past the page cache.
    bool is_direct() const { return direct_; }

    State state() const;

    /// Throws where the file ends before.
    void read(int64_t offset, int64_t size, uint8_t* to) const;

private:
    void open(bool direct);
    void close();

    /// Bytes that were read, 0 at the end of the file, or less: minus the system's error.
    int64_t read_some(int64_t offset, int64_t size, uint8_t* to) const;

    std::string path_;
    intptr_t handle_ = -1;
    bool direct_ = false;
};

}  // namespace tmac
