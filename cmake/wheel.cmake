# SPDX-License-Identifier: BSD-3-Clause
# What goes into the Python package: gossamer/libgossamer.so, _C.so, _C_cuda.so, bin/gossamer.
install(TARGETS gossamer LIBRARY DESTINATION gossamer COMPONENT wheel)
install(TARGETS gossamer_torch LIBRARY DESTINATION gossamer COMPONENT wheel)
if(TARGET gossamer_torch_cuda)
  install(TARGETS gossamer_torch_cuda LIBRARY DESTINATION gossamer COMPONENT wheel)
endif()
set_target_properties(gossamer-cli PROPERTIES INSTALL_RPATH "$ORIGIN/..")
install(TARGETS gossamer-cli RUNTIME DESTINATION gossamer/bin COMPONENT wheel)
