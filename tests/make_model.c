/* Writes a model file with random weights: build/make_model PRESET TYPE [--seed N] [--layers N]
 * [--ctx N] -o FILE */
#include "tests/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int usage(void)
{
    fprintf(stderr,
            "usage: make_model PRESET TYPE [--seed N] [--layers N] [--ctx N] -o FILE\npresets:");
    for (int i = 0; tiny_preset_name(i) != NULL; i++)
        fprintf(stderr, " %s", tiny_preset_name(i));
    fprintf(stderr, "\ntypes: Q4_K_M Q5_K_M");
    for (int t = 0; t < QTYPE_N; t++)
        fprintf(stderr, " %s", qtype_name((enum qtype)t));
    fprintf(stderr, "\n");
    return 64;
}

int main(int argc, char **argv)
{
    struct tiny_spec spec;
    struct err err = {0};
    const char *path = NULL;
    if (argc < 5 || argc % 2 == 0)
        return usage();
    if (!tiny_preset(argv[1], argv[2], &spec, &err)) {
        fprintf(stderr, "make_model: %s\n", err.msg);
        return usage();
    }
    for (int i = 3; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "-o") == 0)
            path = argv[i + 1];
        else if (strcmp(argv[i], "--seed") == 0)
            spec.seed = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--layers") == 0)
            spec.n_layer = (int)strtol(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--ctx") == 0)
            spec.n_ctx = (int)strtol(argv[i + 1], NULL, 10);
        else
            return usage();
    }
    if (path == NULL)
        return usage();
    if (!tiny_write(&spec, path, &err)) {
        fprintf(stderr, "make_model: %s\n", err.msg);
        return 70;
    }
    return 0;
}
