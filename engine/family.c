#include "engine/family.h"

#include <stdio.h>
#include <string.h>

#define DENSE (FAM_SPLIT_QKV | FAM_SPLIT_FFN | FAM_FFN_NORM)

static const struct family families[] = {
    {"llama", NULL, DENSE, ACT_SILU, 0, 0, 0, 0},
    {"qwen2", "qwen2.5", DENSE | FAM_QKV_BIAS | FAM_NEOX, ACT_SILU, 0, 0, 0, 0},
    {"phi3", "phi3", FAM_FUSED_QKV | FAM_FUSED_FFN | FAM_FFN_NORM | FAM_NEOX, ACT_SILU, 0, 0, 0, 2047},
    {"qwen3", "qwen3", DENSE | FAM_QK_NORM | FAM_NEOX, ACT_SILU, 0, 0, 0, 0},
    {"gemma3", "gemma3", DENSE | FAM_QK_NORM | FAM_POST_NORM | FAM_EMBED_SCALE | FAM_NEOX | FAM_OWN_BASE, ACT_GELU, 6,
     10000.0f, 62, 0},
    {"gpt-oss", "gpt-oss", FAM_SPLIT_QKV | FAM_QKV_BIAS | FAM_MOE | FAM_SINKS | FAM_NEOX | FAM_UNTIED | FAM_OWN_BASE,
     ACT_SWIGLU_CLAMPED, 2, 0, 0, 0},
};

const struct family *family_find(const char *arch)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i].arch, arch) == 0)
            return &families[i];
    return NULL;
}

void family_list(char *out, size_t size)
{
    size_t len = 0;
    out[0] = 0;
    for (size_t i = 0; i < sizeof families / sizeof *families && len < size; i++)
        len += (size_t)snprintf(out + len, size - len, "%s%s", i ? ", " : "", families[i].arch);
}
