/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/recipes.h"

#include <string.h>

#include "base/bytes.h"

/* The published method at other numbers of bits, outliers and shares than its presets have. */
#define KIVI(bits, group)                                                                          \
    "k{quant bits=" #bits " axis=channel group=" #group "%} "                                      \
    "v{quant bits=" #bits " axis=token group=" #group "%}"
#define TURBOQUANT(bits) "hadamard signs=1 | lloyd bits=" #bits "%"
#define TURBOQUANT_HALF(more, less)                                                                \
    "split by=channels{hadamard signs=1 | lloyd bits=" #more                                       \
    "%}{hadamard signs=2 | lloyd bits=" #less "%}"
#define TURBOQUANT_PROD(bits)                                                                      \
    "k{hadamard signs=1 | residual{lloyd bits=" #bits "%}{qjl}} "                                  \
    "v{hadamard signs=1 | lloyd bits=" #bits "%}"
#define GEAR_L(bits, rank, group)                                                                  \
    "k{lowrank rank=" #rank "{quant bits=" #bits " axis=channel group=" #group "%}} "              \
    "v{lowrank rank=" #rank "{quant bits=" #bits " axis=token group=" #group "%}}"
#define GEAR(bits, rank, share, group)                                                             \
    "k{lowrank rank=" #rank "{outliers share=" #share " axis=channel fill=mean{"                   \
    "quant bits=" #bits " axis=channel group=" #group "%}}} "                                      \
    "v{lowrank rank=" #rank "{outliers share=" #share " axis=token fill=mean{"                     \
    "quant bits=" #bits " axis=token group=" #group "%}}}"
#define ZIPCACHE(share, more, less)                                                                \
    "k{split by=class share=" #share "{quant bits=" #more " axis=channel group=0%}"                \
    "{quant bits=" #less " axis=channel group=0%}} "                                               \
    "v{split by=class share=" #share "{normalize | quant bits=" #more " axis=token group=0%}"      \
    "{normalize | quant bits=" #less " axis=token group=0%}}"
#define MIKV(share, high, low)                                                                     \
    "balance | split by=class heads=each share=" #share "{" high "}{quant bits=" #low " parts=2%}"
#define PRQ(first, second)                                                                         \
    "residual{quant bits=" #first " axis=channel group=16 mode=sym%}"                              \
    "{quant bits=" #second " axis=channel group=16 mode=sym%}"
#define KVQUANT(bits, share, norm)                                                                 \
    "k{sinks tokens=1{rope-off | outliers by=thresholds axis=channel{"                             \
    "codebook bits=" #bits " axis=channel norm=" #norm "%}}} "                                     \
    "v{sinks tokens=1{outliers share=" #share " axis=token{"                                       \
    "codebook bits=" #bits " axis=token norm=" #norm "%}}}"
#define VIDKV(share, v)                                                                            \
    "k{split by=channels share=" #share "{quant bits=2 axis=channel group=32%}"                    \
    "{rfft | lloyd bits=1 axis=channel group=32 scale=fit%}} v{" v "}"
#define ROTATEKV(bits, group, clip)                                                                \
    "sinks tokens=4{k{rope-off | hadamard heads=4 | reorder by=rotatekv | join | "                 \
    "quant bits=" #bits " group=" #group " clip=" #clip " mode=int%} "                             \
    "v{hadamard | join | quant bits=" #bits " group=" #group " clip=" #clip " mode=int%}}"
#define LARDER(kl)      "sinks tokens=1{rope-off | klt | steps kl=" #kl "}"
#define LARDER_EVEN(kl) "sinks tokens=1{rope-off | klt | steps kl=" #kl " ends=even}"

const struct eval_method eval_methods[] = {
    {"exact", "raw", "raw", true},
    {"exact", "exact", "exact", true},

    {"larder", "KL .0025", LARDER(.0025), true},
    {"larder", "KL .005", LARDER(.005), false},
    {"larder", "KL .007", LARDER(.007), false},
    {"larder", "KL .01", LARDER(.01), true},
    {"larder", "KL .02", LARDER(.02), false},
    {"larder", "KL .04", LARDER(.04), true},
    {"larder", "KL .06", LARDER(.06), false},
    {"larder", "KL .1", LARDER(.1), false},

    {"larder-even", "KL .001", LARDER_EVEN(.001), false},
    {"larder-even", "KL .0025", LARDER_EVEN(.0025), false},
    {"larder-even", "KL .005", LARDER_EVEN(.005), false},
    {"larder-even", "KL .01", LARDER_EVEN(.01), false},
    {"larder-even", "KL .02", LARDER_EVEN(.02), false},
    {"larder-even", "KL .04", LARDER_EVEN(.04), false},

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

    {"turboquant", "3.5 bits", TURBOQUANT_HALF(4, 3), true},
    {"turboquant", "2.5 bits", TURBOQUANT_HALF(3, 2), false},

    {"turboquant-prod", "4 bits", TURBOQUANT_PROD(3), false},
    {"turboquant-prod", "3 bits", TURBOQUANT_PROD(2), true},
    {"turboquant-prod", "2 bits", TURBOQUANT_PROD(1), false},

    {"rotatekv", "5 bits", ROTATEKV(5, 128, 1), false},
    {"rotatekv", "4 bits", ROTATEKV(4, 128, 1), true},
    {"rotatekv", "3 bits", ROTATEKV(3, 128, 1), false},
    {"rotatekv", "2 bits", ROTATEKV(2, 128, .8), true},
    {"rotatekv", "2 bits, 64", ROTATEKV(2, 64, .8), false},

    {"kvquant", "4 bits", KVQUANT(4, .01, off), true},
    {"kvquant", "3 bits", KVQUANT(3, .01, off), false},
    {"kvquant", "2 bits", KVQUANT(2, .01, on), true},
    {"kvquant", "2 bits, no Q-Norm", KVQUANT(2, .01, off), false},

    {"gear", "4 bits", GEAR(4, 4, .02, 64), true},
    {"gear", "3 bits", GEAR(3, 4, .02, 64), false},
    {"gear", "2 bits", GEAR(2, 4, .02, 64), true},
    {"gear", "2 bits, rank 2", GEAR(2, 2, .01, 64), false},
    {"gear-l", "4 bits", GEAR_L(4, 4, 64), true},
    {"gear-l", "3 bits", GEAR_L(3, 4, 64), false},
    {"gear-l", "2 bits", GEAR_L(2, 4, 64), true},
    {"gear-l", "2 bits, rank 2", GEAR_L(2, 2, 128), false},

    {"zipcache", "80 % of 8 in 4", ZIPCACHE(.2, 8, 4), false},
    {"zipcache", "60 % of 4 in 2", ZIPCACHE(.6, 4, 2), true},
    {"zipcache", "40 % of 4 in 2", ZIPCACHE(.4, 4, 2), false},
    {"zipcache", "20 % of 4 in 2", ZIPCACHE(.2, 4, 2), false},

    {"mikv", "16 and 4", MIKV(.2, "keep", 4), false},
    {"mikv", "16 and 2", MIKV(.2, "keep", 2), true},
    {"mikv", "8 and 3", MIKV(.2, "quant bits=8 parts=2%", 3), false},
    {"mikv", "8 and 2", MIKV(.2, "quant bits=8 parts=2%", 2), false},
    {"mikv", "4 and 2", MIKV(.2, "quant bits=4 parts=2%", 2), false},

    {"prq", "4 and 4", PRQ(4, 4), true},
    {"prq", "3 and 3", PRQ(3, 3), false},
    {"prq", "4 and 2", PRQ(4, 2), false},
    {"prq", "2 and 2", PRQ(2, 2), false},

    {"kvtuner", "budget 5", "budget=5", false},
    {"kvtuner", "budget 4", "budget=4", false},
    {"kvtuner", "budget 3.25", "budget=3.25", true},
    {"kvtuner", "budget 2.5", "budget=2.5", false},

    {"cachegen", "level 3", "cachegen3", false},
    {"cachegen", "level 2", "cachegen2", true},
    {"cachegen", "level 1", "cachegen1", false},
    {"cachegen", "8 bins", "quant levels=7 axis=token group=0 mode=sym%", false},
    {"cachegen", "6 bins", "quant levels=5 axis=token group=0 mode=sym%", false},

    {"vidkv", "K 2 and 1, V 2", VIDKV(.5, "quant bits=2 axis=channel%"), false},
    {"vidkv", "K 1.75, V 1.58", VIDKV(.75, "ternary axis=channel group=32 scale=mean%"), false},
    {"vidkv", "K 1.5, V 1.58", VIDKV(.5, "ternary axis=channel group=32 scale=mean%"), true},
    {"vidkv", "K 1.25, V 1.58", VIDKV(.25, "ternary axis=channel group=32 scale=mean%"), false},

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
    {"bfp", "4 bits, K sorted",
     "k{reorder by=bfp | bfp mantissa=4 block=32%} v{bfp mantissa=4 block=32%}", false},
    {"bfp", "3 bits, K sorted",
     "k{reorder by=bfp | bfp mantissa=3 block=32%} v{bfp mantissa=3 block=32%}", false},
};

bool eval_is_house(const char *family)
{
    return strncmp(family, EVAL_HOUSE, strlen(EVAL_HOUSE)) == 0;
}

const uint32_t eval_method_count = LARDER_COUNT_OF(eval_methods);
