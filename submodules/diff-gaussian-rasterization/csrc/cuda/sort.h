// The library primitives that list building rests on. With null `scratch` they only set `bytes`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dgr {

// Stable sort of (key, value) pairs by the lowest `bits` bits of the key.
int sort_pairs(void* scratch, size_t& bytes, const uint32_t* keys, uint32_t* keys_out, const uint32_t* values,
               uint32_t* values_out, int64_t count, int bits, void* stream);
int sort_pairs(void* scratch, size_t& bytes, const uint16_t* keys, uint16_t* keys_out, const uint32_t* values,
               uint32_t* values_out, int64_t count, int bits, void* stream);

// out[i] = sum of in[0 .. i - 1].
int running_sum(void* scratch, size_t& bytes, const uint32_t* in, int64_t* out, int64_t count, void* stream);

}  // namespace dgr
