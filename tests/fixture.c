#define _GNU_SOURCE
#include "tests/fixture.h"
#include "tests/tiny.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char fixture_dir[64];
char fixture_tiny[96], fixture_slow[96];

static void write_model(const char *path, bool slow)
{
    struct tiny_spec spec;
    struct err err = {0};
    bool ok = tiny_preset("smollm2", "Q8_0", &spec, &err);
    if (slow) {    /* 48 MB: some 100 ms to load, some ms a token */
        spec.dim = 512;
        spec.n_head = 8;
        spec.n_kv_head = 4;
        spec.head_dim = 64;
        spec.n_ff = 1536;
        spec.n_layer = 14;
    }
    if (ok && tiny_write(&spec, path, &err))
        return;
    fprintf(stderr, "fixture: %s\n", err.msg);
    exit(70);
}

void fixture_open(void)
{
    snprintf(fixture_dir, sizeof fixture_dir, "/tmp/inferd-test-XXXXXX");
    if (mkdtemp(fixture_dir) == NULL) {
        perror("fixture: mkdtemp");
        exit(70);
    }
    snprintf(fixture_tiny, sizeof fixture_tiny, "%s/tiny.gguf", fixture_dir);
    snprintf(fixture_slow, sizeof fixture_slow, "%s/slow.gguf", fixture_dir);
    write_model(fixture_tiny, false);
    write_model(fixture_slow, true);
}

void fixture_close(void)
{
    DIR *d = opendir(fixture_dir);
    struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL)
        unlinkat(dirfd(d), e->d_name, 0);
    if (d != NULL)
        closedir(d);
    rmdir(fixture_dir);
}
