// Which attention weights survive dropout: Philox4x32-10 with the counter (key // 4, query, batch entry, 0), the very
// numbers of simmst/reference/philox.py.
#pragma once

#include "core/philox.hpp"
#include "cpu/prob_sparse_attention_tiles.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {

struct Dropout {
  bool active;
  uint32_t seed[2];
  uint32_t threshold;  // the smallest word that survives
  double factor;       // of the survivors, 1 / (1 - p)

  explicit Dropout(const AttendCall& call)
      : active(call.dropout_p > 0.0), seed{call.seed[0], call.seed[1]}, threshold(keep_threshold(call.dropout_p)),
        factor(1.0 / (1.0 - call.dropout_p)) {}
};

// The four words of every row's counter; the compiler makes vectors of the loop over the rows.
inline void philox_rows(uint32_t column_block, const uint32_t* row, int64_t count, uint32_t batch, const uint32_t* seed,
                        uint32_t* words, int64_t pitch) {
  for (int64_t i = 0; i < count; ++i) {
    const PhiloxWords drawn = philox4x32(column_block, row[i], batch, 0, seed[0], seed[1]);
    for (int j = 0; j < 4; ++j) words[j * pitch + i] = drawn.word[j];
  }
}

// words[j][i] for keys [first, first + count) with `first` a multiple of 4, and the queries row[0..pitch).
inline void dropout_words(const Dropout& dropout, int64_t batch, int64_t first, int64_t count, const uint32_t* row,
                          int64_t pitch, uint32_t* words) {
  for (int64_t j = 0; j < count; j += 4)
    philox_rows(static_cast<uint32_t>((first + j) / 4), row, pitch, static_cast<uint32_t>(batch), dropout.seed,
                words + j * pitch, pitch);
}

// Drops and rescales weights in place.
template <typename T>
void apply_dropout(const Dropout& dropout, const uint32_t* words, int64_t count, T* weights) {
  const T factor = static_cast<T>(dropout.factor);
  for (int64_t i = 0; i < count; ++i) weights[i] *= words[i] >= dropout.threshold ? factor : T(0);
}

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
