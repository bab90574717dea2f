// Every kernel, as one module.
#include "activations.cu"
#include "matmul.cu"
#include "matvec.cu"
