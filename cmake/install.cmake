# SPDX-License-Identifier: BSD-3-Clause
# What `cmake --install` lays down: headers, library, command, a CMake package and a pkg-config file.
include(CMakePackageConfigHelpers)

install(TARGETS gossamer EXPORT gossamerTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(TARGET gossamer-cli)
  set_target_properties(gossamer-cli PROPERTIES
    INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR};$ORIGIN/..")
  install(TARGETS gossamer-cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/gossamer)
install(EXPORT gossamerTargets NAMESPACE gossamer:: DESTINATION ${package_dir})
export(EXPORT gossamerTargets NAMESPACE gossamer:: FILE ${PROJECT_BINARY_DIR}/gossamerTargets.cmake)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/gossamerConfig.cmake.in
  ${PROJECT_BINARY_DIR}/gossamerConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/gossamerConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/gossamerConfig.cmake
  ${PROJECT_BINARY_DIR}/gossamerConfigVersion.cmake DESTINATION ${package_dir})
configure_file(${PROJECT_SOURCE_DIR}/cmake/gossamer.pc.in ${PROJECT_BINARY_DIR}/gossamer.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/gossamer.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
