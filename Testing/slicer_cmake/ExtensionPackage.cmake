# Stand-in for Slicer's packaging, which puts these two files into the package.
foreach(file IN ITEMS ${EXTENSION_README_FILE} ${EXTENSION_LICENSE_FILE})
  if(NOT EXISTS ${file})
    message(FATAL_ERROR "${file} does not exist")
  endif()
endforeach()
