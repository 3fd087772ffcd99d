#define FP32 /* Numbers are in fp32 */
#include "norm.c"
