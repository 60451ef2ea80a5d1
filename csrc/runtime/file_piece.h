#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/content_hash.h"

namespace tmac {

/// Bytes of a packed file that are not those that were written.
struct DamagedFile : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Bytes [begin, end) of a file and the ContentHash of all of them.
struct FilePiece {
    int64_t begin;
    int64_t end;
    uint64_t checksum;

    int64_t bytes() const { return end - begin; }
};

/// Pieces that follow each other and are read together.
using FilePart = std::vector<FilePiece>;

/// Throws std::invalid_argument unless the pieces are whole blocks of a file of this size and follow each other.
void check_pieces(const FilePart& part, int64_t file_size);

/// Throws DamagedFile unless `hash`, of all bytes of the piece, is the piece's.
void check_hash(const ContentHash& hash, const FilePiece& piece, const std::string& path);

/// The same with the bytes of the piece.
void check_bytes(const uint8_t* bytes, const FilePiece& piece, const std::string& path);

}  // namespace tmac
