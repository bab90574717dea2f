// Every kernel, as one module.
#include "activations.cu"
#include "attention.cu"
#include "matmul.cu"
#include "matvec.cu"
#include "transformer.cu"
