// The register tiles of ProbSparse attention: select, attend and backward share one copy per instruction set.
#include "cpu/prob_sparse_attention_tiles.hpp"

namespace simmst::cpu::SIMMST_ISA::prob_sparse {

SIMMST_TILES(, float)
SIMMST_TILES(, double)

}  // namespace simmst::cpu::SIMMST_ISA::prob_sparse
