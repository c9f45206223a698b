# What simmst._cuda and simmst._cuda_emulated are made of: csrc/cuda/<stem>.cu, <stem>_<part>.cu where there are any, and
# csrc/bindings/cuda_<stem>.cpp for every hot path that has a <stem>.cu.
set(SIMMST_CUDA_KERNELS csrc/cuda/device_check.cu)
set(SIMMST_CUDA_BINDINGS csrc/bindings/cuda.cpp csrc/bindings/cuda_arrays.cpp csrc/bindings/cuda_device_check.cpp)
set(SIMMST_CUDA_DEFINITIONS)

foreach(stem prob_sparse_attention spatial_attention cutting_plane)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/${stem}.cu)
    file(GLOB parts RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS csrc/cuda/${stem}_*.cu)
    list(APPEND SIMMST_CUDA_KERNELS csrc/cuda/${stem}.cu ${parts})
    list(APPEND SIMMST_CUDA_BINDINGS csrc/bindings/cuda_${stem}.cpp)
    string(TOUPPER ${stem} macro)
    list(APPEND SIMMST_CUDA_DEFINITIONS SIMMST_HAS_${macro})
  endif()
endforeach()
