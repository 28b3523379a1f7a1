// Radix sort and prefix sum from CUB, which comes with the compiler. The only file that includes it: it is slow to compile.
#include "sort.h"

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

namespace dgr {
namespace {

template <class Key>
int sort(void* scratch, size_t& bytes, const Key* keys, Key* keys_out, const uint32_t* values, uint32_t* values_out,
         int64_t count, int bits, void* stream) {
  if (count > UINT32_MAX) return int(cudaErrorInvalidValue);  // 32-bit offsets inside the sort are faster
  return int(cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, keys_out, values, values_out, uint32_t(count), 0, bits,
                                             static_cast<cudaStream_t>(stream)));
}

struct Add {
  __host__ __device__ int64_t operator()(int64_t a, int64_t b) const { return a + b; }
};

}  // namespace

int sort_pairs(void* scratch, size_t& bytes, const uint32_t* keys, uint32_t* keys_out, const uint32_t* values,
               uint32_t* values_out, int64_t count, int bits, void* stream) {
  return sort(scratch, bytes, keys, keys_out, values, values_out, count, bits, stream);
}

int sort_pairs(void* scratch, size_t& bytes, const uint16_t* keys, uint16_t* keys_out, const uint32_t* values,
               uint32_t* values_out, int64_t count, int bits, void* stream) {
  return sort(scratch, bytes, keys, keys_out, values, values_out, count, bits, stream);
}

int running_sum(void* scratch, size_t& bytes, const uint32_t* in, int64_t* out, int64_t count, void* stream) {
  return int(cub::DeviceScan::ExclusiveScan(scratch, bytes, in, out, Add(), int64_t(0), count,
                                            static_cast<cudaStream_t>(stream)));
}

}  // namespace dgr
