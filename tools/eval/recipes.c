/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/recipes.h"

#include "base/bytes.h"

#define KIVI(bits, group)                                                                          \
    "k{quant bits=" #bits " axis=channel group=" #group "%} "                                      \
    "v{quant bits=" #bits " axis=token group=" #group "%}"

#define TURBOQUANT(bits) "hadamard signs=1 | lloyd bits=" #bits "%"

const struct eval_method eval_methods[] = {
    {"exact", "raw", "raw", true},
    {"exact", "exact", "exact", true},

    {"uniform", "8 bits", "quant bits=8 group=0%", true},
    {"uniform", "6 bits", "quant bits=6 group=0%", false},
    {"uniform", "4 bits", "quant bits=4 group=64%", true},
    {"uniform", "3 bits", "quant bits=3 group=64%", false},
    {"uniform", "2 bits", "quant bits=2 group=64%", true},

    {"kivi", "4 bits", KIVI(4, 32), true},
    {"kivi", "4 bits, 128", KIVI(4, 128), false},
    {"kivi", "3 bits", KIVI(3, 32), false},
    {"kivi", "3 bits, 128", KIVI(3, 128), false},
    {"kivi", "2 bits", KIVI(2, 32), true},
    {"kivi", "2 bits, 128", KIVI(2, 128), false},

    {"quarot", "int8", "hadamard | quant bits=8 axis=channel group=16 mode=sym%", false},
    {"quarot", "int4", "hadamard | quant bits=4 axis=channel group=16 mode=sym%", true},
    {"quarot", "int3", "hadamard | quant bits=3 axis=channel group=16 mode=sym%", false},
    {"quarot", "int2", "hadamard | quant bits=2 axis=channel group=16 mode=sym%", true},

    {"turboquant", "4 bits", TURBOQUANT(4), true},
    {"turboquant", "3 bits", TURBOQUANT(3), false},
    {"turboquant", "2 bits", TURBOQUANT(2), true},
    {"turboquant", "1 bit", TURBOQUANT(1), false},

    {"itq3", "groups of 32", "hadamard | ternary group=32%", false},
    {"itq3", "groups of 128", "hadamard | ternary group=128%", true},
    {"itq3", "a channel's 32", "hadamard | ternary axis=channel group=32%", false},
    {"itq3", "a channel's 128", "hadamard | ternary axis=channel group=128%", false},

    {"mxfp4", "4 bits", "hadamard block=32 | fp4%", true},
    {"mxfp4", "not rotated", "fp4%", false},
    {"mxfp4", "no clip search", "hadamard block=32 | fp4 clip=none%", false},

    {"fp8", "e4m3", "fp8 format=e4m3%", true},
    {"fp8", "e5m2", "fp8 format=e5m2%", false},

    {"bfp", "6 bits", "bfp mantissa=6 block=32%", false},
    {"bfp", "4 bits", "bfp mantissa=4 block=32%", true},
    {"bfp", "3 bits", "bfp mantissa=3 block=32%", false},
    {"bfp", "2 bits", "bfp mantissa=2 block=32%", false},
};

const uint32_t eval_method_count = LARDER_COUNT_OF(eval_methods);
