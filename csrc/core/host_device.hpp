// Plain C++ shared by the CPU kernels, the CUDA kernels and host code.
#pragma once

// A free function for all of them. Under nvcc it exists on both sides; elsewhere it has internal linkage and is inlined,
// so that the CPU kernels of two instruction sets never share a copy.
#if defined(__CUDACC__)
#define SIMMST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SIMMST_HOST_DEVICE static inline __attribute__((always_inline))
#endif
