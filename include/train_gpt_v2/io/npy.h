#pragma once
// NumPy's .npy files, versions 1 to 3: reading maps the file, writing gives the bytes that numpy.save gives.
//
// Read: int16, int32, int64, uint8, uint16, float16, float32, float64, little-endian, C order, any number of
// dimensions up to 32. The header is parsed as data, never evaluated; object arrays, Fortran order and big-endian files
// are refused with the reason. The product of the shape times the element size must equal what lies in the file.
// Errors: IO001, IO002, IO004 from the file system, IO006 for a malformed file. Threads: no shared state.

#include <string>

#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2 {

// The array as a contiguous tensor. Small files are read, larger ones mapped; `owner` keeps either alive.
Tensor read_npy(const std::string& path);

// The same without the data: dtype, shape and strides are set, data is null. The size of the file is checked.
Tensor read_npy_header(const std::string& path);

// Writes the file atomically (version 1, header padded to 64 bytes).
void write_npy(const std::string& path, const Tensor& tensor);

}  // namespace train_gpt_v2
