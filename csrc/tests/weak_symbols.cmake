# Fails where an object compiled for the instruction set ISA defines a weak function outside of
# qexp::<ISA>: the linker could take that copy for all of them. (Weak data are the same in all.)
execute_process(COMMAND ${NM} -C ${OBJECTS} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]* W [^\n]*" weak "${symbols}")
list(FILTER weak EXCLUDE REGEX " qexp::${ISA}::")
if(weak)
  list(JOIN weak "\n" shown)
  message(FATAL_ERROR "Weak functions outside of qexp::${ISA}, see csrc/simd.hpp:\n${shown}")
endif()
