# The sources of simmst._cuda and simmst._cuda_emulated, and those that tests need in addition.
set(SIMMST_CUDA_KERNELS
  csrc/cuda/cutting_plane.cu
  csrc/cuda/prob_sparse_attention_attend.cu
  csrc/cuda/prob_sparse_attention_backward.cu
  csrc/cuda/prob_sparse_attention_select.cu
  csrc/cuda/prob_sparse_attention_short.cu)
# Compiled by nvcc once for each type of entries (SIMMST_ENTRY).
set(SIMMST_CUDA_KERNELS_BY_ENTRY
  csrc/cuda/spatial_attention_backward.cu
  csrc/cuda/spatial_attention_forward.cu)
set(SIMMST_CUDA_HOST
  csrc/cuda/launch.cpp
  csrc/cuda/spatial_attention.cpp)
set(SIMMST_CUDA_BINDINGS
  csrc/bindings/arrays.cpp
  csrc/bindings/cuda.cpp
  csrc/bindings/cuda_cutting_plane.cpp
  csrc/bindings/cuda_prob_sparse_attention.cpp
  csrc/bindings/cuda_spatial_attention.cpp
  csrc/bindings/plan.cpp)
set(SIMMST_CUDA_CHECK_KERNELS csrc/cuda/checks/device_check.cu)
set(SIMMST_CUDA_CHECK_BINDINGS csrc/cuda/checks/bindings.cpp)
