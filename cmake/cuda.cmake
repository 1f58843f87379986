# SPDX-License-Identifier: BSD-3-Clause
# The CUDA part: src/cuda (device code and its launchers, no torch) and _C_cuda.so (the operators).
# Skipped with one line where nvcc is not found.
if(NOT GOSSAMER_CUDA)
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(GOSSAMER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "gossamer: GOSSAMER_CUDA is ON, but nvcc was not found; put it on PATH or "
      "pass -DCMAKE_CUDA_COMPILER, or pass -DGOSSAMER_CUDA=OFF")
  endif()
  message(STATUS "gossamer: nvcc not found, the CUDA part is skipped")
  return()
endif()
# The target architectures are set file by file; this only keeps CMake from adding its own.
set(CMAKE_CUDA_ARCHITECTURES OFF)
enable_language(CUDA)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
message(STATUS "gossamer: CUDA part with nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
add_subdirectory(${PROJECT_SOURCE_DIR}/src/cuda ${PROJECT_BINARY_DIR}/src/cuda)
