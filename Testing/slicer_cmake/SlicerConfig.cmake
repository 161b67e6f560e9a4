# Stand-in for an installed 3D Slicer: what find_package(Slicer) needs to tell so that an extension made of Python files
# alone can be configured, built and installed. Run with -DSlicer_DIR=<this folder>.
set(Slicer_FOUND TRUE)
set(Slicer_VERSION 5.12.3)
set(Slicer_USE_PYTHONQT ON)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.12/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
set(Slicer_LAUNCHER_EXECUTABLE Slicer)
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/ExtensionConfig.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/ExtensionPackage.cmake)
