# Stand-in for what Slicer writes about an extension: one JSON object of strings, MambaSegmentation.json in the build
# folder, with the values as CMake sees them.
foreach(name IN ITEMS HOMEPAGE CATEGORY CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS README_FILE LICENSE_FILE DEPENDS)
  if(NOT EXTENSION_${name})
    message(FATAL_ERROR "EXTENSION_${name} is not set")
  endif()
  string(REPLACE "\"" "\\\"" value "${EXTENSION_${name}}")
  string(APPEND lines "\"${name}\": \"${value}\",\n")
endforeach()
file(WRITE ${CMAKE_BINARY_DIR}/${PROJECT_NAME}.json "{\n${lines}\"name\": \"${PROJECT_NAME}\"\n}\n")
