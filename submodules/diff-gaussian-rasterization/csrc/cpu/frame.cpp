// Memory of frames, recycled so that a training loop does not pay page faults in every step.
#include "frame.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace dgr {

void* reserve(Buffer& buffer, size_t bytes) {
  if (buffer.bytes >= bytes) return buffer.data;
  free(buffer.data);
  buffer.bytes = (bytes + bytes / 4 + 127) / 64 * 64;
  buffer.data = aligned_alloc(64, buffer.bytes);
  if (buffer.data == nullptr) {
    buffer.bytes = 0;
    throw std::bad_alloc();
  }
  return buffer.data;
}

void* reserve_keeping(Buffer& buffer, size_t bytes, size_t used) {
  if (buffer.bytes >= bytes) return buffer.data;
  Buffer larger;
  reserve(larger, bytes + bytes / 2);
  if (used != 0) memcpy(larger.data, buffer.data, used);
  free(buffer.data);
  buffer = larger;
  return buffer.data;
}

void destroy(Frame* frame) {
  for (Buffer& buffer : frame->buffers) free(buffer.data);
  for (Buffer& buffer : frame->chunk_buffers) free(buffer.data);
  free(frame->scratch.data);
  delete frame;
}

int64_t chunk_begin(const Frame& frame, int chunk) { return frame.visible * chunk / frame.chunks; }

}  // namespace dgr
